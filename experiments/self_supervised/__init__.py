"""Self-supervision: what is learned from inputs alone, and why it does not collapse.

Two networks that predict each other's output could agree on a constant, and do not
(`byol_theory`, `simsiam_collapse`, `vicreg_ablation`). Barlow Twins learns mode by mode at set
times (`barlow_modes`, `barlow_kernel`, `barlow_practice`). Contrast spreads representations over
the sphere, most at a temperature of 0.2 (`contrastive`); its views cost the encoder dimensions, of
which a projector saves some (`projector`); what such a representation saves in labels is priced
against features that are not learned and supervision with the same augmentations
(`label_efficiency`). Masked prediction comes near the posterior of a language that is known,
frequencies first and then both sides (`masked_tokens`); of pixels a linear map learns ridge
regression, its penalty the odds of being hidden (`masked_pixels`).

Open: all of it is of one hidden layer or two, on small images and synthetic languages.
"""
