"""Names that drawing and evaluating both know: whose evaluators are followed, and which weights have an option of their own."""

# In the order of help texts, the first by default; what each stands for, to be put after "whose definitions: ".
FOLLOWED = {
    "adm": "ADM's evaluator's",
    "torch-fidelity": "torch-fidelity's",
    "pytorch-fid": "pytorch-fid's (with its resize)",
    "clean": "clean-fid's (with its resize)",
    "dino": "EDM2's and dgm-eval's FD-DINOv2",
}
ALIASES = ("inception", "dinov2")  # weights of the extractors that these choose, which have an option of their own each
