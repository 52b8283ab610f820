import dataclasses

import pytest
import yaml
from tiny import tiny_bundle

from facevae.attributes.directions import Attribute
from facevae.errors import UsageError
from facevae.sharing.card import Licence, is_unchanged, licence_of, shown_attributes, write_card


@pytest.fixture
def bundle():
    bundle = tiny_bundle()
    bundle.provenance |= {
        "complete": True,
        "terms": "for tests only (nobody's)",
        "sources": ["ff_hq"],
        "num_train": 12345,
        "num_held_out": 678,
        "figures": {"psnr": 24.331, "novelty": 0.5},
        "train": {"r_loss_factor": None, "epochs": 3, "seed": 7},
    }
    return bundle


def metadata_of(card):
    _, head, _ = card.split("---\n", 2)
    return yaml.safe_load(head)


def test_the_metadata_are_what_the_hub_reads(bundle):
    card = write_card(bundle, "someone/faces", licence_of(bundle))
    assert metadata_of(card) == {
        "library_name": "facevae",
        "pipeline_tag": "unconditional-image-generation",
        "license": "other",
        "license_name": "for-tests-only-nobody-s",
        "license_link": "LICENSE",
        "tags": ["vae", "faces", "image-generation", "pytorch"],
    }
    published = metadata_of(write_card(bundle, "someone/faces", Licence("cc-by-nc-4.0")))
    assert published["license"] == "cc-by-nc-4.0"
    assert not any(key.startswith("license_") for key in published)


def test_the_card_says_what_the_model_file_does(bundle):
    card = write_card(bundle, "someone/faces", licence_of(bundle), (4, 9))
    for text in (
        *("32 × 32 px", "8 latent dimensions", "| ff\\_hq |", "12,345", "678", "24.33 dB"),
        *("novelty | 0.5", "r\\_loss\\_factor calibrated", "seed 7", "75%", "not measured"),
        *("facevae sample --model someone/faces", "seed:4 seed:9", "for tests only (nobody's)"),
        *("Limits and misuse", 'facevae.load("someone/faces")'),
    ):
        assert text in card, text
    assert "Unfinished" not in card


def test_a_finish_is_told(bundle):
    bundle.provenance["finish"] = {"epochs": 41}
    card = write_card(bundle, "someone/faces", licence_of(bundle))
    assert "| epochs of the decoder's finish | 41 |" in card


def test_what_a_model_lacks_is_said_or_left_out():
    bundle = dataclasses.replace(
        tiny_bundle(kind="normal"), attributes=[], directions=None, provenance={}
    )
    card = write_card(bundle, "someone/faces", licence_of(bundle))
    assert metadata_of(card)["license"] == "unknown"
    assert "Unfinished" in card
    assert "None were measured" in card
    assert "None were given" in card
    for text in ("arith", "## Attributes", "attributes.png", "None |", "Settings"):
        assert text not in card, text


def test_texts_of_a_file_cannot_become_markup(bundle):
    nasty = "a|b\n## x <script> [y](http://z) `c`"
    bundle.provenance |= {
        "terms": nasty,
        "sources": [nasty],
        "preset": nasty,
        "figures": {nasty: 1},
    }
    first, *rest = bundle.attributes
    bundle.attributes = [dataclasses.replace(first, name="q'\n```\n<b>"), *rest]
    card = write_card(bundle, "someone/faces", licence_of(bundle))
    assert metadata_of(card)["license_name"] == "a-b-x-script-y-http-z-c"
    for text in ("<script>", "[y](", "\n## x", "q'\n", "\n```\n<b>"):
        assert text not in card, text


def test_whether_a_card_was_changed_is_seen(bundle):
    card = write_card(bundle, "someone/faces", licence_of(bundle))
    assert is_unchanged(card)
    assert is_unchanged(card.replace("\n", "\r\n"))
    assert not is_unchanged(card.replace("678", "679"))
    assert not is_unchanged(card + "more\n")
    assert not is_unchanged("---\nlicense: mit\n---\n")
    assert not is_unchanged("")


def test_a_licence_is_what_was_asked_for_or_what_the_model_carries(bundle):
    assert licence_of(bundle) == Licence("other", "for tests only (nobody's)")
    assert licence_of(bundle, "mit") == Licence("mit", "for tests only (nobody's)")
    bundle.provenance["terms"] = ""
    assert licence_of(bundle) == Licence("unknown")
    for wrong in ("other", "M I T", "", "a\nb"):
        with pytest.raises(UsageError, match="license"):
            licence_of(bundle, wrong)


def test_the_attributes_that_people_ask_for_come_first_then_those_that_are_told_apart_best():
    bundle = tiny_bundle()
    accuracies = (0.6, None, 0.9, 0.7, 0.8)
    bundle.attributes = [Attribute(str(i), 1, 1, a) for i, a in enumerate(accuracies)]
    assert shown_attributes(bundle) == [2, 4, 3, 0]
    named = ("Blurry", "Young", "Bald", "Smiling", "Male")
    bundle.attributes = [
        Attribute(name, 1, 1, a) for name, a in zip(named, accuracies, strict=True)
    ]
    assert shown_attributes(bundle) == [4, 1, 3, 2]
