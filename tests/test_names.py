import pytest

from facevae.attributes.names import are_alike, match_attribute
from facevae.errors import UsageError

NAMES = ["5_o_Clock_Shadow", "Blond_Hair", "Eyeglasses", "Male", "No_Beard", "Smiling"]
NAMES += ["Wavy_Hair", "Wearing_Hat", "Young"]


@pytest.mark.parametrize(
    ("wanted", "name", "sign"),
    [
        ("Eyeglasses", "Eyeglasses", 1),
        ("eyeglasses", "Eyeglasses", 1),
        ("glasses", "Eyeglasses", 1),
        ("smile", "Smiling", 1),
        ("SMILING", "Smiling", 1),
        ("beard", "No_Beard", -1),
        ("no beard", "No_Beard", 1),
        ("No_Beard", "No_Beard", 1),
        ("hat", "Wearing_Hat", 1),
        ("wearing-hat", "Wearing_Hat", 1),
        ("blond", "Blond_Hair", 1),
        ("male", "Male", 1),
        ("female", "Male", -1),
        ("old", "Young", -1),
        ("shadow", "5_o_Clock_Shadow", 1),
        ("wavy", "Wavy_Hair", 1),
        ("gender", "Male", 1),
        ("woman", "Male", -1),
        ("age", "Young", -1),
        ("stubble", "5_o_Clock_Shadow", 1),
        ("spectacles", "Eyeglasses", 1),
        ("headwear", "Wearing_Hat", 1),
    ],
)
def test_an_attribute_is_known_by_what_people_call_it(wanted, name, sign):
    index, direction = match_attribute(wanted, NAMES)
    assert (NAMES[index], direction) == (name, sign)


@pytest.mark.parametrize("name", ["beard", "Hat", "SMILE", "female"])
def test_a_models_own_name_comes_before_an_everyday_meaning(name):
    assert match_attribute(name.lower(), [*NAMES, name]) == (len(NAMES), 1)


@pytest.mark.parametrize(
    ("wanted", "names", "expected"),
    [
        ("old", ["Smile", "Age"], ("Age", 1)),
        ("young", ["Smile", "Age"], ("Age", -1)),
        ("smiling", ["Smile", "Age"], ("Smile", 1)),
        ("hat", ["Headwear", "Age"], ("Headwear", 1)),
        ("hat", ["Headwear", "Wearing_Hat"], ("Wearing_Hat", 1)),
        ("old", ["Young", "Age"], ("Age", 1)),
        ("mustache", ["Moustache"], ("Moustache", 1)),
        ("male", ["Female"], ("Female", -1)),
        ("man", ["Woman"], ("Woman", -1)),
        ("woman", ["Male", "Woman"], ("Woman", 1)),
        ("woman", ["Male", "Female"], ("Female", 1)),
        ("gender", ["Female"], ("Female", -1)),
    ],
)
def test_a_word_finds_what_means_it_or_its_opposite_in_any_vocabulary(wanted, names, expected):
    index, sign = match_attribute(wanted, names)
    assert (names[index], sign) == expected


@pytest.mark.parametrize(
    ("wanted", "name"), [("glasses", "Has_Glasses"), ("beard", "Has_Beard"), ("smile", "Big_Smile")]
)
def test_a_unique_part_of_a_name_will_do_for_everyday_words_too(wanted, name):
    assert match_attribute(wanted, ["Young", name]) == (1, 1)


def test_of_an_unknown_attribute_the_nearest_are_named_by_any_of_their_words():
    with pytest.raises(UsageError, match="attribute=Eyeglases: did you mean Eyeglasses"):
        match_attribute("Eyeglases", NAMES)
    with pytest.raises(UsageError, match=r"keep=gendr: did you mean gender\? `facevae attributes"):
        match_attribute("gendr", ["Male", "Smiling"], "keep")
    with pytest.raises(UsageError) as caught:
        match_attribute("smlie", ["Male", "Smiling"])
    assert "did you mean smile or Male? " in str(caught.value), "each attribute once"


def test_where_none_is_near_all_are_listed():
    with pytest.raises(UsageError, match="attribute=zebra: this model knows") as caught:
        match_attribute("zebra", NAMES)
    assert all(name in str(caught.value).partition("knows ")[2] for name in NAMES)


def test_the_option_that_names_it_is_named():
    with pytest.raises(UsageError, match=r"^keep=nothing: "):
        match_attribute("nothing", NAMES, "keep")


def test_a_part_of_several_names_offers_those():
    with pytest.raises(UsageError, match=r"did you mean Blond_Hair or Wavy_Hair\?"):
        match_attribute("hair", NAMES)


@pytest.mark.parametrize("wanted", ["", "__", "zzzzzz"])
def test_what_is_like_nothing_still_lists_all(wanted):
    with pytest.raises(UsageError, match="this model knows") as caught:
        match_attribute(wanted, NAMES)
    assert all(name in str(caught.value) for name in NAMES)


def test_a_model_without_attributes_says_so():
    with pytest.raises(UsageError, match="knows no attributes"):
        match_attribute("smile", [])


def test_where_none_is_near_many_are_counted():
    names = [f"Attribute{i}" for i in range(13)]
    with pytest.raises(
        UsageError, match=r"this model knows 13 attributes; see `facevae attributes"
    ):
        match_attribute("zebra", names)


@pytest.mark.parametrize(
    ("name", "other", "expected"),
    [
        ("Male", "male", True),
        ("Male", "gender", True),
        ("Female", "Male", True),
        ("Young", "age", True),
        ("glasses", "Eyeglasses", True),
        ("Male", "Young", False),
        ("Bald", "Balding things", False),
    ],
)
def test_names_of_the_same_attribute_or_its_opposite_are_alike(name, other, expected):
    assert are_alike(name, other) == are_alike(other, name) == expected
