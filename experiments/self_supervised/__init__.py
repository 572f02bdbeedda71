"""Self-supervision: what is learned from inputs alone, and why it does not collapse.

Two networks that predict each other's output could agree on a constant, and do not. Found:

- Linear encoders with a predictor and a target held fixed live up to a critical weight decay and
  from a critical start on, as a closed form says; without either part they die (`byol_theory`).
- So do networks on digits: SimSiam, BYOL and DirectPred each collapse without their part. Spread
  after batch norm does not see it; effective rank does, for one missing part of three, and nearest
  neighbours lose up to a fifth (`simsiam_collapse`).
- VICReg's terms do each what no other does for it (`vicreg_ablation`).
- Barlow Twins learns mode by mode, each when its start says (`barlow_modes`); networks at the rates
  of their tangent kernel, to an error of width^(-1/2) (`barlow_kernel`); with a small last layer in
  practice too, at times that features at init foretell (`barlow_practice`).
- Contrast spreads representations over the sphere, most at a temperature of 0.2 of those tried
  (`contrastive`; whether it falls steadily above is undecided);
  its views cost the encoder dimensions, some of which a projector saves (`projector`). What such a
  representation saves in labels is priced against features that are not learned and supervision
  with the same augmentations (`label_efficiency`).
- Masked prediction comes near the posterior of a language that is known, frequencies first and then
  both sides (`masked_tokens`); of pixels a linear map learns ridge regression, its penalty the odds
  of being hidden (`masked_pixels`).

Open: all of it is of one hidden layer or two, on small images and synthetic languages. In practice
modes rise in 0.6 of the time that features at init give them: what do the layers below learn while
a mode comes up? Why do representations keep four fifths of their neighbours when they collapse?
"""
