"""When what fits its examples holds beyond them: test error, predicted.

What is asked: how far a model errs on examples that it has not seen, and what of its size, its
penalty and its training decides it, where theory leaves no parameter free. Found so far: linear
regression on some of its features errs as is known exactly at any size, with a peak where features
are as many as examples; random features err as their kernel's spectrum says; a ridge takes off
either peak, to the value predicted (`double_descent`). Descent stopped in time is worth a ridge, to
4% at most, and its test error is predicted at every step (`early_stopping`).

Of many lines that separate two classes descent comes to the one of widest margin, as log t, plus a
constant that its rate and the support vectors decide: both are predicted, to a thousandth of the
constant, where as many examples support the margin as there are dimensions (`max_margin`).

Open: within 8 features of the peak the mean is one of rare large errors, and nothing is claimed;
where examples lie just off the margin, the asymptote is some 6% off after a million steps.
"""
