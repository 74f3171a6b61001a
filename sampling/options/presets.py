"""PRESETS: what a name stands for. No torch."""

from fiducial.wings import ASSETS

# Defaults that a preset puts in the place of the general ones. What the user says on the command line wins.
PRESETS = {
    "digits": {
        "model": "DiT-XS/2",
        "ckpt": ASSETS / "digits" / "dit.safetensors",
        "vae": str(ASSETS / "digits" / "vae"),
        "image_size": 64,
        "num_classes": 10,
        "cfg_channels": 4,
        "cfg_scale": 1.5,
        "num_fid_samples": 1000,
        "per_proc_batch_size": 50,
        "sampler": "ddpm",
        "num_sampling_steps": "50",
    },
    # The same data and autoencoder, by a SiT.
    "digits-flow": {
        "model": "SiT-XS/2",
        "ckpt": ASSETS / "digits" / "sit.safetensors",
        "vae": str(ASSETS / "digits" / "vae"),
        "image_size": 64,
        "num_classes": 10,
        "cfg_channels": 4,
        "cfg_scale": 1.5,
        "num_fid_samples": 1000,
        "per_proc_batch_size": 50,
        "sampler": "flow-heun",
        "num_sampling_steps": "20",
    },
    # As DiT's published numbers were drawn, but for the labels, which DiT draws at random as well, by another generator.
    **{
        f"dit-xl-2-{size}": {
            "model": "DiT-XL/2",
            "vae": "ema",
            "image_size": size,
            "num_classes": 1000,
            "cfg_channels": 3,
            "cfg_scale": 1.5,
            "num_fid_samples": 50_000,
            "sampler": "ddpm",
            "num_sampling_steps": "250",
        }
        for size in (256, 512)
    },
}
