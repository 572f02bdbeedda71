"""Attention: what layers of it can learn, in which order, and when depth can be trained at all.

Tokens that attend to each other grow alike, and gradients vanish with what tells them apart
(`rank_collapse`); a skip prevents it, and depth trains where it is prevented (`trainable_depth`);
where the norm stands decides how gradients go with depth (`norm_at_init`, `norm_rates`). One query
selects tokens by their margin (`token_selection`). One linear layer learns a step of gradient
descent on its context (`linear_step`), softmax needs two heads for it (`softmax_heads`); two layers
learn to count transitions (`markov_chains`) and to copy by matching prefixes (`induction_heads`).

Open: all of it is of one or two layers, or at initialisation; what trained deep networks keep of
it is not asked here.
"""
