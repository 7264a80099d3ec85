"""The attack on a copy with folded batch norms is the attack on the model."""

import pytest
import torch

from robust_models import PGD
from robust_models.attacks import frozen_eval
from tests.test_train_ranks import recipe
from tests.tiny import tiny_classifier
from train.copies import FoldedTwin, compiles, make_twin

X = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])
CPU = torch.device("cpu")


@pytest.mark.parametrize("arch", ["preact_resnet10_w16", "resnet18"])
def test_the_twin_follows_the_weights_and_is_attacked_alike(arch):
    model = tiny_classifier(arch).double()
    twin = FoldedTwin(model)
    assert twin.pairs
    assert not any(parameter.requires_grad for parameter in twin.model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):
        model.train()
        torch.nn.functional.cross_entropy(model(3 * X.double() - 1), Y).backward()
        optimizer.step()
    model.eval()
    twin.refresh()
    x, attack = X.double(), PGD(0.5, 0.1, 7)
    torch.testing.assert_close(twin.model(x), model(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(attack(twin.model, x, Y), attack(model, x, Y), rtol=0, atol=1e-5)
    with torch.no_grad():
        model.head.weight.mul_(2)
    assert not torch.allclose(twin.model(x), model(x), atol=1e-3)
    twin.refresh()
    torch.testing.assert_close(twin.model(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_network_without_norms_to_fold_is_attacked_itself(tmp_path):
    model = tiny_classifier()
    assert make_twin(model, recipe(tmp_path, "a"), CPU) is not None
    assert make_twin(model, recipe(tmp_path, "a", compile=True), CPU) is None
    assert make_twin(model, recipe(tmp_path, "a", attack={"fold": False}), CPU) is None
    assert make_twin(model, recipe(tmp_path, "a", attack={"eps": 0}), CPU) is None
    model.network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 3))
    assert make_twin(model, recipe(tmp_path, "a"), CPU) is None


def test_the_recipe_or_else_the_length_of_a_run_says_whether_it_is_compiled(tmp_path):
    cuda, long, short = torch.device("cuda"), 100_000, 10
    left_open = recipe(tmp_path, "a")
    assert [compiles(left_open, device, steps) for device in (cuda, CPU) for steps in (long, short)] == [
        True,
        False,
        False,
        False,
    ]
    for asked in (True, False):
        said = recipe(tmp_path, "a", compile=asked)
        assert {compiles(said, device, steps) for device in (cuda, CPU) for steps in (long, short)} == {asked}
    assert not compiles(recipe(tmp_path, "a", noised=True), cuda, long)


def test_refreshing_leaves_the_original_as_it_was(classifier):
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    twin = FoldedTwin(classifier)
    classifier.train()
    twin.refresh()
    with frozen_eval(twin.model):
        twin.model(X)
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
    assert classifier.training
    assert all(parameter.requires_grad for parameter in classifier.parameters())
