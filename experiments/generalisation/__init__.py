"""When what is learned from examples holds beyond them, when it is learned by heart: predicted.

What is asked: how far a model errs on what it has not seen, how it comes from its examples to the
rule, and what of its size, its data and its training decides it, by theory that leaves no parameter
free. Found so far:

The test error of a wide network's kernel on real digits follows from its spectrum on other digits,
to 1 or 2% up to 128 examples, shuffled labels included (`learning_curves`); a network of finite
width errs more, by as much as 1 / width (`curve_of_width`). Linear regression errs as is known
exactly at any size, with a peak where features are as many as examples, which a ridge takes off; so
do random features (`double_descent`). Descent stopped in time is worth a ridge, to 4% at most, and
its error is predicted at every step (`early_stopping`).

On the way wrong labels are corrected before they are fitted: exactly so in regression
(`signal_first`), and in a network on digits of which 40% are labelled wrongly (`memorised_last`).
Low frequencies come before high ones, each at the rate of its eigenvalue, and those that have none
never (`spectral_bias`). Of many lines that separate two classes descent comes to the one of widest
margin, as log t plus a constant that is known (`max_margin`).

Understanding may come long after fitting: in linear regression as an accident of counting answers,
by a delay in closed form (`grokking_linear`); in sums modulo 23 as waves of one frequency that
weight decay makes of the neurons (`grokking_modular`). Decay also shrinks classes to points: free
features exactly, a network's by two thirds, though not to a simplex (`neural_collapse`).

Open: what moving features add to a kernel's curve on digits, as all they do here is harm; within 8
of the peak, where the mean is one of rare large errors; why a network's class means stay off the
simplex; exponents in the number of examples and in width.
"""
