"""Where the target classes come from: a file of labels, one class, or the classifier's guesses."""

import json

import pytest
import torch

from refine.label_files import labels_from_file
from refine.targets import debiased, one_class, pseudo, uncertain
from robust_models import UserError
from robust_models.labels import class_indices

CLASSES = ("airplane", "automobile", "bird")
NAMES = ("000/a", "000/b", "001/a")  # as an image set has them: relative, without suffix


def written(folder, text, name="labels.csv"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "file,label\n000/a.png,2\n000/b.png,0\n001/a.png,1\n",
        "LABEL,width,File\n2,32,000/a.png\n0,32,000/b.png\n1,32,001/a.png\n",
        "000/a.png,bird\n000/b.png,Airplane\n001/a.png,automobile\n",
        "\ufeff000/a\tbird\r\n000/b\t0\r\n\r\n001/a\t1\r\n",
        "name; class\n./000/a.PNG; 2\n000\\b.jpeg; 0\n001/a.webp; 1",
        "extra.png,0\n001/a.png,1\n000/b.png,0\n000/a.png,2\n",
        "label\nbird\nairplane\nautomobile\n",
        "2\n0\n1\n",
    ],
)
def test_labels_from_csv(tmp_path, text):
    assert labels_from_file(written(tmp_path, text), NAMES, CLASSES).tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    "content",
    [
        {"labels": [["000/a.png", 2], ["000/b.png", 0], ["001/a.png", 1]]},  # StyleGAN's dataset.json
        {"labels": [2, 0, 1]},
        {"000/a.png": 2, "000/b.png": "airplane", "001/a.png": "1"},
        [["000/a", "bird"], ["000/b", "airplane"], ["001/a", "automobile"]],
        ["bird", 0, 1],
    ],
)
def test_labels_from_json(tmp_path, content):
    y = labels_from_file(written(tmp_path, json.dumps(content), "dataset.json"), NAMES, CLASSES)
    assert y.dtype == torch.int64
    assert y.tolist() == [2, 0, 1]


def test_a_suffix_tells_files_of_one_stem_apart(tmp_path):
    path = written(tmp_path, "a.png,0\na.jpg,1\nv1.5,2\n")
    assert labels_from_file(path, ["a.jpg", "a.png", "v1.5"], CLASSES).tolist() == [1, 0, 2]
    with pytest.raises(UserError, match="has several files called a but for their suffix, with different labels"):
        labels_from_file(path, ["a"], CLASSES)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "000/a.png,2\n9.png,1\n", r"no label for 2 of 3 images, the first 000/b \(it names 000/a.png, ...\)"),
        ("l.csv", "file,label\n000/a,2\n000/b,\n001/a,1", r"l.csv, line 3: '000/b,' lacks a file or a label"),
        ("l.csv", "000/a,2\n000/b\n001/a,1", r"l.csv, line 2: '000/b' lacks a file or a label"),
        ("l.csv", "000/a,2\n000/a,1\n", r"l.csv names 000/a twice, as 2 and as 1"),
        ("l.csv", "000/a,2\n000/b,2\n001/a,brid\n", r"class 'brid' is none of the .* 3 classes; did you mean bird?"),
        ("l.csv", "000/a,2\n000/b,2\n001/a,x\n", r"class 'x' is none .* 3 classes \(airplane, automobile, bird\)"),
        ("l.csv", "000/a,2\n000/b,2\n001/a,3\n", r"class 3 is outside the classifier's 3 classes \(0 to 2\)"),
        ("l.csv", "file,size\n000/a,2\n", r"l.csv has no column 'label'; its header is file, size"),
        ("l.csv", "0\n1\n", r"l.csv has 2 labels without names for 3 images; give one for each, in order"),
        ("l.csv", "0\n1\n2\n0\n", r"l.csv has 4 labels without names for 3 images"),
        ("l.csv", "\n", r"l.csv is empty; expected a label for each file"),
        ("l.csv", 'a,"b', r"l.csv is not CSV"),
        ("l.json", "[0, 1", r"l.json is not JSON"),
        ("l.json", "3", r"l.json holds int; expected \{name: value\} or a list"),
        ("l.json", '[["000/a", 1, 2]]', r'l.json, entry 0: \["000/a", 1, 2\]; expected a name with a number'),
        ("l.json", "[0, 1, null]", r"l.json, entry 2: null; expected a name with a number or a class name"),
        ("l.json", '{"labels": null}', r'l.json, entry 0: \["labels", null\]'),
        ("l.json", '[["000/a", 1], 2]', r"l.json mixes entries with and without names"),
        ("l.json", "[0, 1, 1.5]", r"class '1.5' is none of the classifier's 3 classes"),
        ("l.json", "[0, 1, -1]", r"class -1 is outside the classifier's 3 classes \(0 to 2\)"),
    ],
)
def test_labels_that_do_not_fit_are_refused_in_one_line(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message) as caught:
        labels_from_file(written(tmp_path, text, name), NAMES, CLASSES)
    assert str(caught.value).startswith("targets: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "l.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"targets: .*l.csv cannot be read \(not UTF-8 text\)"):
        labels_from_file(tmp_path / "l.csv", NAMES, CLASSES)
    with pytest.raises(UserError, match=r"targets: .* cannot be read \(not a regular file\); give a CSV or JSON file"):
        labels_from_file(tmp_path, NAMES, CLASSES)


@pytest.mark.parametrize("bird", ["bird", "BIRD", "2", 2])
def test_one_class_for_all(bird):
    y = one_class(bird, 4, CLASSES)
    assert y.dtype == torch.int64
    assert y.tolist() == [2] * 4


def test_one_class_that_the_classifier_lacks_is_refused():
    with pytest.raises(UserError, match=r"targets: class 'airplan' is none of .*; did you mean airplane\?"):
        one_class("airplan", 1, CLASSES)
    with pytest.raises(UserError, match=r"targets: class 7 is outside the classifier's 3 classes"):
        one_class("7", 1, CLASSES)


def test_a_number_is_a_name_before_it_is_an_index():
    assert class_indices(["1", 1, "0"], ["1", "2"], source="here") == [0, 1, 0]


def test_debiasing_takes_off_the_mean_of_the_first_thousand_logits():
    logits = torch.randn(1500, 4) + torch.tensor([9.0, 0.0, 0.0, 0.0])
    logits[1000:, 3] += 50  # later images do not count
    assert (pseudo(logits[:1000]) == 0).all()
    y = debiased(logits)
    assert torch.equal(y, (logits + -logits[:1000].mean(0)).argmax(1))
    assert torch.bincount(y[:1000]).min() > 200
    assert (y[1000:] == 3).all()


def test_uncertain_images_are_those_without_a_probable_class():
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.3, 0.3], [0.9, 0.1, 0.0]])
    assert uncertain(probs.log(), 0.45).tolist() == [False, True, False]
    assert not uncertain(probs.log(), 0.0).any()
