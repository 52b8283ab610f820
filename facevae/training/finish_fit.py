"""The finish of a decoder: measurements and records during the fit, and its provenance."""

from typing import Any

from facevae.config import STAGES
from facevae.data.batches import Batches
from facevae.measures.perceptual import load_perceptual
from facevae.models.bundle import Bundle
from facevae.networks.prior import Prior
from facevae.networks.vae import VAE
from facevae.stages.adversary import FinishStage, batch_size
from facevae.stages.fast import Warn
from facevae.training.runs import Run, weights_digest
from facevae.training.snapshots import NUM_PROBES, draw_progress, measure
from facevae.training.steps import Fitting, Work, check_finite, fit, last_figures, skipped_words

# change whenever saved states of the finish become incompatible
_STATE_VERSION = "judged apart and by features, coarse layers at rest, two blocks, mends"


def finish(work: Work, bundle: Bundle) -> None:
    """Finish the decoder of `bundle`, in place.

    Held-out figures and pictures are recorded at the ends of epochs.
    """
    fitting = _FinishFitting(work, bundle)
    fit(work, fitting)
    fitting.update_provenance(fitting.stage.budget.num_steps - 1)


def finish_stage(run: Run, vae: VAE, prior: Prior, warn: Warn = lambda _: None) -> FinishStage:
    """The training steps of a finish. `vae` and `prior` are fitted, and on the run's device."""
    perceptual = load_perceptual(run.device) if run.train.perceptual else None
    batches = Batches(run.faces, batch_size(run.train), run.train.seed, run.device)
    return FinishStage(vae, prior, batches, run.train, perceptual, warn)


class _FinishFitting(Fitting):
    """The finish of a decoder, as the training loop sees it."""

    name, stage_name, event = "finish", "finish", "finish"
    task = "Finishing"
    advice = "go on without it: --stages vae,prior"
    too_few = "has been finished for {epochs} epochs; --finish-epochs cannot be fewer"
    stage: FinishStage

    def __init__(self, work: Work, bundle: Bundle) -> None:
        self._work, self._bundle = work, bundle
        train = work.run.train
        key = [weights_digest(bundle.vae), weights_digest(bundle.prior), str(train.finish_weight)]
        if train.perceptual:
            key.append("LPIPS")
        self.key = " ".join([*key, _STATE_VERSION])
        self.prior_config = bundle.prior_config
        self.stage = finish_stage(work.run, bundle.vae, bundle.prior, work.listener.notice)
        self.size = self.stage.batches.size

    def ends_epoch(self, index: int) -> bool:
        """Whether a pass over the training faces ends with step `index`."""
        return self.stage.batches.ends_epoch(index)

    def measure(self, index: int) -> dict[str, Any]:
        """Held-out figures and pictures of the model, which is saved for use in the meantime."""
        run, folder = self._work.run, self._work.folder
        is_last = index + 1 == self.stage.budget.num_steps
        figures = measure(run, self._bundle.vae, None if is_last else NUM_PROBES)
        check_finite(folder, figures, self.advice)
        self.update_provenance(index)
        self._work.save_progress(self._bundle)
        epoch = self.stage.batches.epoch(index)
        pictures = draw_progress(run, folder, self._bundle, epoch, "finish-")
        return {"epoch": epoch, **figures, **pictures}

    def update_provenance(self, index: int) -> None:
        """Describe the finish up to step `index` in the model's provenance."""
        train, provenance = self._work.run.train, self._bundle.provenance
        provenance["finish"] = {
            "epochs": self.stage.batches.epochs(index),
            "weight": train.finish_weight,
            "perceptual": train.perceptual,
        }
        provenance["stage_seconds"] = {
            **provenance.get("stage_seconds", {}),
            "finish": train.seconds_for("finish"),
        }
        settings = provenance["train"]
        completed = {*settings.get("stages", ("vae", "prior")), *train.stages}
        settings["stages"] = [stage for stage in STAGES if stage in completed]
        settings |= {"finish_epochs": train.finish_epochs, "finish_weight": train.finish_weight}
        settings["perceptual"] = train.perceptual

    def note(self, records: list[dict[str, Any]]) -> str:
        """The last figures, for the progress line."""
        last, measured = last_figures(records, self.event), last_figures(records, "epoch")
        if not last:
            return ""
        parts = [
            f"made {last['generator_loss']:.2f} against {last['discriminator_loss']:.2f}",
            *skipped_words(last["skipped_steps"]),
            f"held-out PSNR {measured['psnr']:.2f} dB" if measured else "",
            f"sharpness {measured['sharpness']:.2f}" if measured else "",
            f"{last['images_per_second']:,.0f} images/s",
        ]
        return " · ".join(filter(None, parts))
