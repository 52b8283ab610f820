"""The fit of encoder and decoder: measurements and records during it, and the fitted network."""

from typing import Any

from facevae.data.batches import Batches
from facevae.faces.framing import Framing
from facevae.networks.vae import VAE, remove_variance
from facevae.stages.fast import Warn
from facevae.stages.network_stage import NetworkStage
from facevae.system.runtime import seeded
from facevae.training.runs import Run
from facevae.training.snapshots import (
    NUM_PROBES,
    draw_progress,
    implied,
    latent_histograms,
    measure,
    probe,
    progress_model,
    snapshot,
)
from facevae.training.steps import Fitting, Work, check_finite, fit, last_figures, skipped_words


def fit_network(work: Work, framing: Framing | None) -> tuple[VAE, int]:
    """Fit encoder and decoder.

    Held-out figures and pictures are recorded at the ends of epochs. Returns the network with the
    weights to use, and the number of images it was trained on.
    """
    fitting = _NetworkFitting(work, framing)
    fit(work, fitting)
    stage = fitting.stage
    return snapshot(work.run, stage), stage.budget.num_steps * stage.batches.size


def network_stage(run: Run, warn: Warn = lambda _: None) -> NetworkStage:
    """The training steps of the network, from its initial weights on."""
    batches = Batches(run.faces, run.train.batch_size, run.train.seed, run.device)
    return NetworkStage(_new_vae(run), batches, run.train, warn)


def _new_vae(run: Run) -> VAE:
    with seeded(run.train.seed):
        vae = VAE(run.model)
    if run.init:
        vae.load_state_dict(run.init.vae.plain_state())
    if not run.train.kl_weight:
        remove_variance(vae)
    return vae.to(run.device)


class _NetworkFitting(Fitting):
    """The fit of a network, as the training loop sees it."""

    name, stage_name, event = "network", "vae", "steps"
    task = "Training"
    advice = "start anew in another folder with a lower --learning-rate"
    too_few = "has been trained for {epochs} epochs; --epochs cannot be fewer"
    stage: NetworkStage

    def __init__(self, work: Work, framing: Framing | None) -> None:
        self._work, self._framing = work, framing
        self.stage = network_stage(work.run, work.listener.notice)
        self.size = self.stage.batches.size

    def figures(self, means: dict[str, float], index: int) -> dict[str, float]:  # noqa: ARG002
        """The loss terms, and the figures that they imply."""
        return means | implied(self._work.run, means["mse"], means["kl_nats"])

    def ends_epoch(self, index: int) -> bool:
        """Whether a pass over the training faces ends with step `index`."""
        return self.stage.batches.ends_epoch(index)

    def measure(self, index: int) -> dict[str, Any]:
        """Held-out figures and pictures of a model, which is saved for use in the meantime."""
        run, folder, batches = self._work.run, self._work.folder, self.stage.batches
        averaged = snapshot(run, self.stage)
        is_last = index + 1 == self.stage.budget.num_steps
        figures = measure(run, averaged, None if is_last else NUM_PROBES)
        check_finite(folder, figures, self.advice)
        mean, logvar = probe(run, averaged)
        images = (index + 1) * batches.size
        progress = progress_model(run, averaged, mean, logvar, images)
        progress.framing = self._framing
        self._work.save_progress(progress)
        epoch = batches.epoch(index)
        pictures = draw_progress(run, folder, progress, epoch)
        histograms = latent_histograms(mean, logvar)
        return {"epoch": epoch, **figures, **pictures, "histograms": histograms}

    def note(self, records: list[dict[str, Any]]) -> str:
        """The last figures, for the progress line."""
        last, measured = last_figures(records, self.event), last_figures(records, "epoch")
        if not last:
            return ""
        terms = (
            f"reconstruction {last['reconstruction_nats']:,.0f} + KL {last['kl_nats']:,.0f} nats"
        )
        parts = [
            terms,
            *skipped_words(last.get("skipped_steps", 0)),
            f"held-out PSNR {measured['psnr']:.2f} dB" if measured else "",
            f"{last['images_per_second']:,.0f} images/s",
            f"memory {last['process_bytes'] / 1e9:.1f} GB" if "process_bytes" in last else "",
            f"GPU {last['gpu_bytes'] / 1e9:.1f} GB" if "gpu_bytes" in last else "",
        ]
        return " · ".join(filter(None, parts))
