"""Class mappings in every form people have them, what is wrong with them in a sentence, and labels by name."""

import json
import os
import re

import pytest

from fiducial import UserError, classes
from fiducial.classes import ClassNames, imagenet, names_of_checkpoint, read
from fiducial.sampling.options.class_names import has_names, numbered

PETS = ("beagle", "golden retriever", "pug")


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_folder_is_counted_as_torchvision_counts_it(tmp_path):
    from PIL import Image
    from torchvision.datasets import ImageFolder

    for name in ("b", "a b", "B", "10", "9", "_x", "ä", ".hidden"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (2, 2)).save(tmp_path / name / "1.png")
    (tmp_path / "a file").touch()
    (tmp_path / "linked").symlink_to(tmp_path / "b")
    assert list(read(tmp_path, "x").names) == ImageFolder(tmp_path).classes
    assert read(tmp_path, "x").names[:3] == (".hidden", "10", "9")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '{"pug": 2, "beagle": 0, "golden retriever": 1}'),
        ("a.json", '{"2": "pug", "0": "beagle", "1": "golden retriever"}'),
        ("a.JSON", '["beagle", "golden retriever", "pug"]'),
        ("a.json", '{"1": ["n2", "golden retriever"], "0": ["n1", "beagle"], "2": ["n3", "pug"]}'),
        ("a.txt", "beagle\ngolden retriever\npug\n\n"),
        ("a.names", "beagle\r\ngolden retriever \r\npug"),
        ("a.txt", "\ufeffbeagle\ngolden retriever\npug"),
    ],
)
def test_every_form_of_a_file_gives_the_same_mapping(name, content, tmp_path):
    found = read(write(tmp_path / name, content), "x")
    assert found.names == PETS
    assert found.sha256 == ClassNames(PETS, "elsewhere").sha256
    assert found.indices("n2") == ([1] if "n2" in content else [])


def test_the_hash_is_that_of_the_canonical_list():
    # printf '["a","é"]' | sha256sum
    assert ClassNames(("a", "é"), "x").sha256 == "91bd7b5d30b2d6b32212d31553dcaca2b9e172330cd6325f9476e3e0ac9028cd"


DAMAGED = [
    ("a.json", '{"a": 0, "b": 2}', "index 1 is missing, before 2"),
    ("a.json", '{"a": 1, "b": 2}', "index 0 is missing, before 1"),
    ("a.json", '{"a": -1, "b": 0}', "index -1"),
    ("a.json", '{"a": 0, "a": 1}', "'a' stands there twice"),
    ("a.json", '{"0": "a", "00": "b"}', "index 0 stands there twice"),
    ("a.json", '{"0": "a", "1": "a"}', "'a' is the name of both 0 and 1"),
    ("a.json", '["e\u0301", "é"]', "is the name of both 0 and 1"),
    ("a.json", '[["n1", "a"], ["n1", "b"]]', "'n1' is the name of both 0 and 1"),
    ("a.json", '{"0": "a", "2": "b"}', "index 1 is missing, before 2"),
    ("a.json", '{"a": 0, "b": 1.0}', "maps 'b' to 1.0"),
    ("a.json", '{"a": true, "b": 0}', "maps 'a' to True"),
    ("a.json", '{"a": {"b": 1}}', "maps 'a' to {'b': 1}"),
    ("a.json", '{"0": ["n1", "a"], "1": "b"}', "index 0 is ['n1', 'a'], which is no name"),
    ("a.json", '["a", 7]', "index 1 is 7, which is no name"),
    ("a.json", '["a", " "]', "index 1 is ' ', which is no name"),
    ("a.json", '["a", "b\\u0007c"]', "has a tab, line break or other control character"),
    ("a.json", '["\\ud800"]', "is not UTF-8 text"),
    ("a.json", json.dumps(["a" * 201]), "has 201 characters, more than 200"),
    ("a.json", "{}", "is empty"),
    ("a.json", "[]", "is empty"),
    ("a.json", "7", "is int"),
    ("a.json", "", "is not JSON"),
    ("a.json", "beagle\npug\n", "is not JSON"),
    ("a.json", "[" * 100_000, "is nested too deeply"),
    ("a.json", "[1" + "0" * 5000 + "]", "digits"),
    ("a.txt", "", "is empty"),
    ("a.txt", "a\n\nb\n", "index 1 is '', which is no name"),
    ("a.txt", "a\nb\na\n", "'a' is the name of both 0 and 2"),
    ("a.csv", "0,n02088364,beagle\n2,n02110958,pug", "index 1 is missing, before 2"),
    ("a.csv", "1,n02088364,beagle\n1,n02110958,pug", "index 1 stands there twice"),
    ("a.txt", "a\tb\nc", "the name of index 0, 'a\\tb', has a tab"),
    ("a.txt", b"a\n\xff\n", "is not UTF-8 (byte 2)"),
]


@pytest.mark.parametrize(("name", "content", "said"), DAMAGED)
def test_what_is_no_mapping_is_one_sentence(name, content, said, tmp_path):
    path = write(tmp_path / name, content)
    with pytest.raises(UserError) as refused:
        read(path, f"--class-names {path}")
    assert str(refused.value).startswith(f"--class-names {path}: ")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_cannot_be_read_is_one_sentence(tmp_path, monkeypatch):
    for path, said in ((tmp_path / "absent", "^x: there is no such file or folder"), (tmp_path, "has no subfolders")):
        with pytest.raises(UserError, match=said):
            read(path, "x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"^x: it is a named pipe, not a file$"):
        read(tmp_path / "pipe", "x")
    (tmp_path / os.fsdecode(b"\xff")).mkdir()
    with pytest.raises(UserError, match="not UTF-8"):
        read(tmp_path, "x")
    monkeypatch.setattr(classes, "LARGEST_FILE", 3)
    with pytest.raises(UserError, match="4 bytes, too many"):
        read(write(tmp_path / "a.txt", "pugs"), "x")


def test_imagenets_classes_are_in_the_order_of_the_training_folder():
    known = imagenet()
    assert len(known.names) == len(set(known.names)) == len(known.aliases) == 1000
    assert list(known.aliases) == sorted(known.aliases)
    # From the files of the public sample images, which are named by synset and name.
    facts = {0: ("n01440764", "tench"), 207: ("n02099601", "golden retriever"), 999: ("n15075141", "toilet tissue")}
    facts |= {134: ("n02012849", "crane bird"), 517: ("n03126707", "crane"), 638: ("n03710637", "maillot")}
    for index, (synset, name) in facts.items():
        assert (known.aliases[index], known.names[index]) == (synset, name)
        assert known.indices(synset) == [index]
        assert index in known.indices(name)


def test_a_folder_of_synsets_is_imagenet(tmp_path):
    for synset in imagenet().aliases:
        (tmp_path / synset).mkdir()
    found = read(tmp_path, "x")
    assert (found.names, found.sha256, found.source) == (imagenet().names, imagenet().sha256, "x")
    assert found.indices("n01440764") == [0]
    (tmp_path / "n00000001").mkdir()
    assert read(tmp_path, "x").names[:2] == ("n00000001", "n01440764")


def in_other_order(form):
    """ImageNet's classes as lists have them, sorted by something else than their synsets."""
    known = imagenet()
    order = sorted(range(1000), key=lambda index: known.names[index])
    return "\n".join(form(place, known.aliases[index], known.names[index]) for place, index in enumerate(order))


OTHER_ORDERS = {
    "map_clsloc.txt": lambda place, synset, name: f"{synset} {place + 1} {name.replace(' ', '_')}",
    "synsets.txt": lambda _, synset, __: synset,
    "synset_words.txt": lambda _, synset, name: f"{synset} {name}, or so",
    "names.txt": lambda _, __, name: name,
    "indices.txt": lambda place, _, name: f"{place}: {name}",
    "table.csv": lambda place, synset, name: f'{place},{synset},"{name}, or so"',
    "table.tsv": lambda place, synset, name: f"{place + 1}\t{synset}\t{name}",
}


@pytest.mark.parametrize("name", OTHER_ORDERS)
def test_imagenets_classes_in_another_order_are_refused(name, tmp_path):
    path = write(tmp_path / name, in_other_order(OTHER_ORDERS[name]))
    with pytest.raises(UserError, match=r"index 0 is '.*', which has index [1-9][0-9]* in ImageNet's training") as refused:
        read(path, f"--class-names {path}")
    assert "\n" not in str(refused.value)
    known = json.dumps({synset: 999 - index for index, synset in enumerate(imagenet().aliases)})
    with pytest.raises(UserError, match="index 0 is 'n15075141', which has index 999"):
        read(write(tmp_path / "a.json", known), "x")
    assert names_of_checkpoint(None, tmp_path / "m.pt", known, 1000).names[0] == "n15075141"  # its own is the training's


@pytest.mark.parametrize("places", [{3: 4, 4: 3}, {place: 39 - place for place in range(40)}])
def test_no_synset_has_another_index_than_in_the_training(places, tmp_path):
    """One name may, as lists differ in what classes are called, but no two that change places; a synset is one class's."""
    order = [places.get(place, place) for place in range(1000)]
    synsets, names = ([of[place] for place in order] for of in (imagenet().aliases, imagenet().names))
    said = f"index {min(places)} is '{synsets[min(places)]}', which has index {places[min(places)]} in ImageNet's training"
    pairs = list(zip(synsets, names, strict=True))
    mapping = {synset: index for index, synset in enumerate(synsets)}
    for content in (json.dumps(mapping), json.dumps(synsets), json.dumps(dict(enumerate(pairs))), json.dumps(pairs)):
        with pytest.raises(UserError, match=said):
            read(write(tmp_path / "a.json", content), "x")
    with pytest.raises(UserError, match=said):
        read(write(tmp_path / "a.txt", "\n".join(f"{synset} {name}" for synset, name in pairs)), "x")
    assert names_of_checkpoint(None, tmp_path / "m.pt", mapping, 1000).names == tuple(synsets)  # its own is the training's


EXCHANGES = {"two pairs": {0: 1, 1: 0, 100: 900, 900: 100}, "a round": {7: 8, 8: 9, 9: 7}}


@pytest.mark.parametrize("places", EXCHANGES.values(), ids=EXCHANGES)
def test_names_that_change_places_are_never_put_back(places, tmp_path):
    names = [imagenet().names[places.get(place, place)] for place in range(1000)]
    mapping, ckpt = {name: index for index, name in enumerate(names)}, tmp_path / "m.pt"
    for own in (mapping, json.dumps(mapping), names, {str(index): name for index, name in enumerate(names)}):
        assert names_of_checkpoint(None, ckpt, own, 1000).names == tuple(names)  # its own is the training's
    said = f"index {min(places)} is '{names[min(places)]}', which has index {places[min(places)]} in ImageNet's training"
    for content in (json.dumps(names), json.dumps(mapping), json.dumps(dict(enumerate(names))), "\n".join(names), str(mapping)):
        with pytest.raises(UserError, match=re.escape(said)):
            read(write(tmp_path / "a.txt", content), "x")


def test_another_lists_word_for_a_class_is_known_and_is_no_answer_alone(tmp_path):
    """A list that calls the class "common newt" eft, and eft something else."""
    names = list(imagenet().names)
    names[26], names[27] = "eft", "newt, red"
    found = read(write(tmp_path / "a.json", json.dumps(names)), "x")
    assert found.names == imagenet().names
    assert found.indices("eft") == [26, 27]
    own = {name: index for index, name in enumerate(names)}
    assert names_of_checkpoint(None, tmp_path / "m.pt", own, 1000).names == tuple(names)


@pytest.mark.parametrize("lacking", [0, 700, 999])
def test_synsets_of_a_part_of_imagenet_are_themselves(lacking, tmp_path):
    part = [synset for index, synset in enumerate(imagenet().aliases) if index != lacking]
    assert read(write(tmp_path / "a.txt", "\n".join(part)), "x").names == tuple(part)


TWINS = ["crane" if name == "crane bird" else name.removesuffix(" tank suit") for name in imagenet().names]
TORCHVISIONS = {name: index for index, names in enumerate(TWINS) for name in (names, *(["Tinca tinca"] if not index else []))}
IN_ORDER = {
    "synset_words.txt": "\n".join(f"{synset} {name}, or so" for synset, name in zip(imagenet().aliases, TWINS, strict=True)),
    "map_clsloc.txt": "\n".join(f"{synset} {index + 1} x" for index, synset in reversed([*enumerate(imagenet().aliases)])),
    "dict.txt": str({index: f"{name}, or so" for index, name in enumerate(TWINS)}).replace("', ", "',\n "),
    "program.txt": f"idx2label = {dict(enumerate(TWINS))}\n",
    "table.csv": "\n".join(f'{index},{synset},"x, y"' for index, synset in reversed([*enumerate(imagenet().aliases)])),
    "table.tsv": "\n".join(f"{index}\t{synset}\tx" for index, synset in enumerate(imagenet().aliases, 1)),
    "names.txt": "\n".join(TWINS),
    "class_to_idx.json": json.dumps(TORCHVISIONS),
    "imagenet_class_index.json": json.dumps(dict(enumerate(zip(imagenet().aliases, TWINS, strict=True)))),
    "tuples.txt": str([(name, "or so") for name in TWINS]),
}


@pytest.mark.parametrize("name", IN_ORDER)
def test_imagenets_classes_are_known_in_every_form_with_their_twins(name, tmp_path):
    """torchvision's class_to_idx has several names an index, and lost the first of two classes of one name."""
    assert len(set(TWINS)) == len(set(TORCHVISIONS.values())) == 998
    found = read(write(tmp_path / name, IN_ORDER[name]), "x")
    assert (found.names, found.aliases, found.source) == (imagenet().names, imagenet().aliases, "x")
    assert numbered("tench,n02012849,crane bird", found) == "0,134,134"
    assert name != "class_to_idx.json" or numbered("Tinca tinca", found) == "0"


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("a.txt", "{0: 'beagle', 1: 'golden retriever', 2: 'pug'}", PETS),
        ("a.txt", "['beagle',\n 'golden retriever',\n 'pug']", PETS),
        ("a.txt", '{"pug": 2, "beagle": 0, "golden retriever": 1}', PETS),
        ("a.txt", "3 pug\n1 beagle\n2 golden retriever", PETS),
        ("a.txt", "0: beagle\n1: golden retriever\n2: pug", PETS),
        ("a.txt", "7 beagle\n1 pug", ("7 beagle", "1 pug")),  # numbers that are no indices
        ("a.txt", "[beagle]\n[pug]", ("[beagle]", "[pug]")),
        ("a.txt", "n02088364 beagle\nn02110958 pug", ("beagle", "pug")),
        ("a.csv", '1,n02110958,"pug, pug-dog"\n0,n02088364,beagle', ("beagle", "pug, pug-dog")),
        ("a.tsv", "1\tn02088364\n2\tn02110958", ("n02088364", "n02110958")),
        ("a.txt", "labels = ['beagle',\n 'golden retriever', 'pug']", PETS),
        ("a.txt", "idx2label={1: 'golden retriever', 0: 'beagle',\n 2: 'pug'}\n", PETS),
        ("a.json", '{"beagle": 0, "hound": 0, "pug": 1}', ("beagle", "pug")),
        ("a.json", '[["beagle", "hound"], ["pug"]]', ("beagle", "pug")),
        ("a.json", '{"0": ["n02012849", "crane"], "1": ["n03126707", "crane"]}', ("crane (n02012849)", "crane (n03126707)")),
        ("a.json", '{"n02110958": 0, "n02088364": 1}', ("n02110958", "n02088364")),  # said to be the training's order
    ],
)
def test_other_forms_give_the_first_name_of_each_class(name, content, names, tmp_path):
    found = read(write(tmp_path / name, content), "x")
    assert found.names == names
    assert "hound" not in content or found.indices("hound") == [0]


def test_synsets_of_some_classes_are_sorted(tmp_path):
    with pytest.raises(UserError, match=r"index 0 is 'n02110958', but .* numbers them sorted, where it has index 1"):
        read(write(tmp_path / "a.txt", "n02110958\nn02088364"), "x")


def test_a_name_of_several_classes_is_not_chosen_from(tmp_path):
    said = r"'crane' is a name of several classes, 134 \(crane bird, n02012849\) and 517 \(crane, n03126707\); give the number or"
    with pytest.raises(UserError, match=said):
        numbered("3,crane", imagenet())
    twins = read(write(tmp_path / "a.json", '{"0": ["n02012849", "crane"], "1": ["n03126707", "crane"]}'), "x")
    with pytest.raises(UserError, match=r"'crane' is a name of several classes, 0 \(crane \(n02012849\), n02012849\) and 1 "):
        numbered("crane", twins)
    assert numbered("n03126707", twins) == "1"


@pytest.mark.parametrize(
    "content",
    ["{" * 200_000 + "}", "[" + "-" * 200_000 + "1]", "{0: " + "(" * 90_000 + ")" * 90_000 + "}", "a" + " " * 300_000 + "b"],
)
def test_what_only_begins_like_a_dictionary_is_one_sentence(content, tmp_path):
    with pytest.raises(UserError, match=r"characters, more than|begins like a dictionary"):
        read(write(tmp_path / "a.txt", content), "x")


def test_which_names_hold(tmp_path):
    ckpt, sidecar = tmp_path / "m.pt", tmp_path / "m.pt.classes.json"
    assert names_of_checkpoint(None, ckpt, None, 3) is None
    assert names_of_checkpoint(None, ckpt, None, 1000) == imagenet()
    folder = tmp_path / "train"
    for name in PETS:
        (folder / name).mkdir(parents=True)
    assert names_of_checkpoint(folder, ckpt, None, 3) == ClassNames(PETS, f"--class-names {folder}")
    embedded = {"pug": 2, "beagle": 0, "golden retriever": 1}
    assert names_of_checkpoint(None, ckpt, embedded, 3) == ClassNames(PETS, f"class_to_idx in {ckpt}")
    assert names_of_checkpoint(None, ckpt, json.dumps(embedded), 3) == names_of_checkpoint(None, ckpt, embedded, 3)
    assert names_of_checkpoint(folder, ckpt, embedded, 3).names == PETS
    write(sidecar, json.dumps(PETS))
    assert names_of_checkpoint(None, ckpt, None, 3) == ClassNames(PETS, str(sidecar))
    assert names_of_checkpoint(folder, ckpt, embedded, 3).names == PETS
    own = [f"own {index}" for index in range(1000)]
    write(sidecar, json.dumps(own))
    assert names_of_checkpoint(None, ckpt, None, 1000).names == tuple(own)  # and not ImageNet's


def test_mappings_that_differ_are_refused_by_the_first_index_that_does(tmp_path):
    ckpt, folder = tmp_path / "m.pt", tmp_path / "train"
    embedded = {name: index for index, name in enumerate(PETS)}
    for name in (*PETS, "corgi"):
        (folder / name).mkdir(parents=True)
    shifted = r"--class-names .*train: its 4 classes are not the 3 of class_to_idx in .*m\.pt, for index 1 is 'golden retriever' "
    with pytest.raises(UserError, match=shifted + "there and 'corgi' here"):
        names_of_checkpoint(folder, ckpt, embedded, 3)
    (folder / "corgi").rename(folder / "shiba")
    with pytest.raises(UserError, match="index 3 is nothing there and 'shiba' here"):
        names_of_checkpoint(folder, ckpt, embedded, 3)
    (folder / "shiba").rmdir()
    assert names_of_checkpoint(folder, ckpt, embedded, 3).names == PETS
    write(sidecar := tmp_path / "m.pt.classes.json", '["beagle", "pug", "golden retriever"]')
    for option in (folder, None, sidecar):
        with pytest.raises(UserError, match="index 1 is 'pug' there and 'golden retriever' here"):
            names_of_checkpoint(option, ckpt, embedded, 3)
    with pytest.raises(UserError, match="index 1 is 'pug' there and 'golden retriever' here"):
        names_of_checkpoint(folder, ckpt, None, 3)


def test_there_is_a_name_for_each_class(tmp_path):
    names = write(tmp_path / "a.txt", "\n".join(PETS))
    for count in (2, 4, 1000):
        with pytest.raises(UserError, match=f"a.txt: names 3 classes, but --num-classes is {count}"):
            names_of_checkpoint(names, tmp_path / "m.pt", None, count)


@pytest.mark.parametrize("embedded", [7, [], {}, "{", {"a": 1}, {0: "a", 1: "b"}, {"a": "b"}])
def test_an_unusable_mapping_of_the_checkpoint_is_one_sentence(embedded, tmp_path):
    with pytest.raises(UserError, match=r"^class_to_idx in .*m\.pt: "):
        names_of_checkpoint(None, tmp_path / "m.pt", embedded, 1)


KNOWN = ClassNames(("beagle", "golden retriever", "pug", "mouse, grey", "3-5", "7", "ä"), "pets", tuple("nopqrst"))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("random", "random"),
        ("null", "null"),
        ("7,7,3-5", "7,7,3-5"),
        (" 2, 0", " 2, 0"),
        ("golden retriever,pug,6,0-2", "1,2,6,0-2"),
        (" golden retriever , 6", " 1 , 6"),
        ("mouse\\, grey,beagle", "3,0"),
        ("o,n", "1,0"),
        ("3-5,7", "3-5,7"),
        ("pug,3-5,7", "2,3-5,7"),  # numbers are indices, whatever the classes are called
        ("a\u0308", "6"),
    ],
)
def test_names_become_indices(spec, expected):
    assert numbered(spec, KNOWN) == expected


def test_numbers_and_modes_need_no_names():
    assert numbered("7,3-5", None) == "7,3-5"
    assert not any(map(has_names, ("random", "balanced", "null", "7", "7, 3-5", "3-")))
    assert all(map(has_names, ("pug", "7,pug", "random,7", "", "7,,7", "-1", "1.5", "٣")))


NONE_OF = "is neither random, balanced, null, a number such as 7 or 3-5, nor one of the 7 names of pets"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("golden retreiver", f"'golden retreiver' {NONE_OF}; the closest: 'golden retriever'"),
        ("7,PUG", f"'PUG' {NONE_OF}; the closest: 'pug'"),
        ("GOLDEN RETREIVER", f"'GOLDEN RETREIVER' {NONE_OF}; the closest: 'golden retriever'"),
        ("Grey", f"'Grey' {NONE_OF}; the closest: 'mouse\\, grey'"),  # a word of several
        ("mouse, grey", f"'mouse' {NONE_OF}; the closest: 'mouse\\, grey'"),
        ("zebra", f"'zebra' {NONE_OF}"),
        ("", f"'' {NONE_OF}"),
        ("random,7", f"'random' {NONE_OF}"),
    ],
)
def test_an_unknown_name_is_answered_with_the_closest(spec, said):
    with pytest.raises(UserError) as refused:
        numbered(spec, KNOWN)
    assert str(refused.value) == f"--labels {said}"


def test_without_names_the_remedy_is_said():
    with pytest.raises(UserError, match=r"^--labels 'pug' .*no class names are known; give them with --class-names$"):
        numbered("pug", None)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("index,name\n0,cat\n1,dog\n", ("cat", "dog")),
        ("index\tname\n1\tdog\n0\tcat\n", ("cat", "dog")),
        ('"class_id","class_name"\n0,"cat, wild"\n1,dog\n', ("cat, wild", "dog")),
        ("Class ID, Class Name\n1, cat\n2, dog\n", ("cat", "dog")),
        ("synset label\nn00000001 tench\nn00000002 goldfish\n", ("tench", "goldfish")),
        ("index synset name\n0 n00000001 tench\n1 n00000002 goldfish\n", ("tench", "goldfish")),
        ("name,index\ncat,1\ndog,0\n", ("dog", "cat")),
        ("label maker\ndog\n", ("label maker", "dog")),
        ("index finger\nthumb\n", ("index finger", "thumb")),
        ("label\n", ("label",)),
        ("text\nphoto\n", ("text", "photo")),
        ("class number\nhuman readable\n", ("class number", "human readable")),
    ],
)
def test_a_header_is_no_class(text, names, tmp_path):
    (path := tmp_path / "names.csv").write_text(text)
    assert read(path, "FILE").names == names


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name\ncat\ndog\n", "line 1, 'name', is a header and no class"),
        ("class_name\ncat\ndog\n", "line 1, 'class_name', is a header and no class"),
        ("what it is, how often\n0,cat\n1,dog\n", "line 1, 'what it is, how often', has no index before a name"),
        ("cat\n1,dog\n2,bird\n", "line 1, 'cat', has no index before a name, as the others have"),
    ],
)
def test_a_line_that_is_no_class_is_told_by_its_number(text, said, tmp_path):
    (path := tmp_path / "names.tsv").write_text(text)
    with pytest.raises(UserError, match=re.escape(f"FILE: {said}")):
        read(path, "FILE")


CAT_IS_1 = ("dog", "cat", "bird")
INDEXED = [
    "cat 1\ndog 0\nbird 2",
    "cat 2\ndog 1\nbird 3\n",
    "cat,1\ndog,0\nbird,2",
    "cat\t1\ndog\t0\nbird\t2",
    "cat: 1\ndog: 0\nbird: 2",
    "cat = 1\ndog = 0\nbird = 2",
    "cat;1\ndog;0\nbird;2",
    "1;cat\n0;dog\n2;bird",
    "1|cat\n0|dog\n2|bird",
    '"cat",1\n"dog",0\n"bird",2',
    '"1","cat"\n"0","dog"\n"2","bird"',
    "'1': 'cat',\n'0': 'dog',\n'2': 'bird',",
    "'cat': 1,\n'dog': 0,\n'bird': 2",
    "1: 'cat',\n0: 'dog',\n2: 'bird'",
    "1,cat,1\n0,dog,0\n2,bird,2",
    "1,cat,2\n0,dog,1\n2,bird,3",
    "name index\ncat 1\ndog 0\nbird 2",
    '"class_name","class_id"\n"cat",1\n"dog",0\n"bird",2',
    "# classes of the training\n{0: 'dog', 1: 'cat', 2: 'bird'}",
    "# one\n# two\n\n{'dog': 0, # three\n 'cat': 1,\n# four\n 'bird': 2}",
    "# name, index\ncat,1\ndog,0\nbird,2",
    "# by number\n1 cat\n0 dog\n2 bird",
    "'dog',\n'cat',\n'bird',",
]


@pytest.mark.parametrize("text", INDEXED)
def test_an_index_is_understood_in_whichever_column(text, tmp_path):
    assert read(write(tmp_path / "a.txt", text), "x").names == CAT_IS_1


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("kind 0\nkind 1\nkind 2", ("kind 0", "kind 1", "kind 2")),  # the same name without the number
        ("0: kind 0\n2: kind 1\n1: kind 2", ("kind 0", "kind 2", "kind 1")),
        ("Boeing 747\nAirbus 320", ("Boeing 747", "Airbus 320")),
        ("tench, Tinca tinca,1\ngoldfish, Carassius auratus,0", ("goldfish, Carassius auratus", "tench, Tinca tinca")),
        ("tench, or so\nBoeing, 747\nhen", ("tench, or so", "Boeing, 747", "hen")),
        ("!\n#\n0\n1", ("!", "#", "0", "1")),
        ("#cat\n#dog", ("#cat", "#dog")),
        ("n02110958,pug,1\nn02088364,beagle,0", ("beagle", "pug")),
    ],
)
def test_numbers_and_signs_within_names_stay(text, names, tmp_path):
    assert read(write(tmp_path / "a.txt", text), "x").names == names


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1,cat,0\n0,dog,1\n", "a number before and one behind the name, each of which may be the index"),
        ("cat,5\ndog,0", "index 1 is missing, before 5"),
        ("cat,1\ndog,1", "index 1 stands there twice"),
        ("7,cat\n1,dog", "index 2 is missing, before 7"),
        ("cat,1,pet\ndog,0,pet\ntiger,2,wild", "its lines have their index between others; give the index and the name alone"),
        ("species,code\ncat,1\ndog,0", "line 1, 'species,code', has no index, as others have; remove it if it is a header"),
        (",name\n0,cat\n1,dog", "line 1, ',name', is a header and no class"),
        ("cat,0\ndog,1\nbird", "line 3, 'bird', has no index"),
        ("# the classes\ncat\ndog", "line 1, '# the classes', is a comment and no class"),
        ("cat\n# and\ndog", "line 2, '# and', is a comment and no class"),
        ("{0: 'cat', 1: 'dog'}\nprint(1)", "begins like a dictionary or list of Python's, but is none"),
        ("const names = {\n0: 'cat',\n1: 'dog',\n2: 'bird',\n};", "line 1, 'const names = {', has no index"),
    ],
)
def test_an_index_that_cannot_be_understood_is_refused(text, said, tmp_path):
    with pytest.raises(UserError, match=re.escape(said)):
        read(write(tmp_path / "a.txt", text), "x")
