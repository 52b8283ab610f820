"""How fast other programs train the same layers, beside facevae and a plain loop.

    python -m venv peers && peers/bin/pip install torch==2.13.0 pythae
    python tests/benchmarks/peers.py --size 128 --pythae peers/bin/python
    python tests/benchmarks/peers.py --device cuda --preset paper --steps 400 --pythae peers/bin/python

pythae (0.1.2) is run from an environment of its own: its `VAE` is given facevae's encoder and
decoder, and its `BaseTrainer` the paper's batches and learning rate, all else as it comes. The time
is that of whole epochs after the first, from one callback of the trainer's to the next; the faces
are as many as in `train_speed.py`, whose two loops are the others.
"""

import sys
import tempfile
import time
from pathlib import Path

import train_speed


def pythae(task: train_speed.Task) -> float:
    """Images a second of pythae's trainer over facevae's layers."""
    import torch
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    from facevae.networks import vae

    config = task.config

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = vae.Encoder(config)

        def forward(self, images: torch.Tensor) -> ModelOutput:
            mean, logvar = self.layers(images)
            return ModelOutput(embedding=mean, log_covariance=logvar)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = vae.Decoder(config)

        def forward(self, latents: torch.Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.layers(latents))

    class Clock(TrainingCallback):
        def __init__(self) -> None:
            self.ends = []

        def on_epoch_end(self, *_, **__) -> None:
            self.ends.append(time.perf_counter())

    shape = (3, task.size, task.size)
    images = torch.rand(train_speed.BATCHES * task.batch_size, *shape)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = BaseTrainer(
            VAE(VAEConfig(input_dim=shape, latent_dim=config.latent_dim), Encoder(), Decoder()),
            BaseDataset(images, torch.ones(len(images))),
            training_config=BaseTrainerConfig(
                output_dir=folder,
                num_epochs=1 + -(-task.steps // train_speed.BATCHES),
                per_device_train_batch_size=task.batch_size,
                learning_rate=5e-4,
                no_cuda=task.device == "cpu",
            ),
            callbacks=[clock],
        )
        trainer.train()
    return (len(clock.ends) - 1) * len(images) / (clock.ends[-1] - clock.ends[0])


def main() -> None:
    """Measure the loops in turn and print the ratios."""
    if train_speed.answer({"pythae": pythae}):
        return
    parser = train_speed.parser(__doc__)
    parser.add_argument("--pythae", required=True, help="the Python of an environment with pythae")
    options = parser.parse_args()
    task = train_speed.task_of(options)
    ours = (sys.executable, str(Path(train_speed.__file__)))
    loops = {"pythae": (options.pythae, __file__), "plain": ours, "ours": ours}
    train_speed.compare(loops, task)


if __name__ == "__main__":
    main()
