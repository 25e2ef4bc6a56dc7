"""Whether a recipe is the one that made the model, and when it is another."""

import json
import warnings
from dataclasses import replace
from shutil import copytree

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

from pydvl_datainf import JobError
from pydvl_datainf.jobfile.recipe import RecipeCheck, check_recipe
from pydvl_datainf.jobfile.validation import recipe_of
from tuned_again import adamw, classifier, orders, retraining, review_loss, tuned_plainly

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def save(model, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(path)


@pytest.fixture
def own(classes, tuned, tmp_path):
    """A model that was tuned by the recipe, with a seed of its own."""
    model = classifier(tuned, 11).eval()
    save(tuned_plainly(model, orders(range(10), 11), review_loss, adamw(model)), tmp_path / "own")
    return classes | {"adapter": "own"}


def retrained(again):
    return lambda seeds: np.stack([again(range(10), seed) for seed in range(seeds)])


def test_the_right_recipe(own, tmp_path):
    again = retraining(tmp_path, own)
    found = check_recipe(again.of_tuned(), retrained(again))
    assert 0 < found.distance < 3 * found.between_seeds
    assert 0 < found.distance_of_means < 3 * found.means_between_seeds


def test_a_wrong_recipe(own, tmp_path):
    again = retraining(tmp_path, own, learning_rate=1e-4, epochs=1)
    given, losses = again.of_tuned(), retrained(again)(6)
    with pytest.raises(JobError, match="'training' is not the recipe that made the model") as told:
        check_recipe(given, lambda seeds: losses[:seeds])
    pairs = [np.abs(losses[i] - losses[j]).mean() for i in range(6) for j in range(i)]
    for figure in (np.abs(losses - given).mean(), np.mean(pairs)):
        assert f"by {figure:.3g} " in str(told.value)
    for figure in (given.mean(), losses.mean()):
        assert f"{figure:.4g}" in str(told.value)


def test_distances_are_means_of_absolute_differences():
    losses = np.array([[1.5, 2.0], [1.0, 1.0], [0.0, 1.0]])
    found = RecipeCheck(np.array([1.0, 2.0]), losses)
    assert found.distance == pytest.approx((0.5 + 0 + 0 + 1 + 1 + 1) / 6)
    assert found.between_seeds == pytest.approx((1.5 + 2.5 + 1) / 2 / 3)
    assert found.distance_of_means == pytest.approx((0.25 + 0.5 + 1) / 3)
    assert found.means_between_seeds == pytest.approx((0.75 + 1.25 + 0.5) / 3)
    assert found.fits
    assert not replace(found, given=found.given + 3).fits


def test_a_mean_that_is_off_is_seen_where_single_losses_vary():
    noise = np.array([1.0, -1.0] * 4)
    losses = np.stack([noise, -noise + 0.01])
    assert RecipeCheck(noise + 0.02, losses).fits
    shifted = RecipeCheck(noise + 0.5, losses)
    assert shifted.distance < shifted.between_seeds
    assert not shifted.fits


def test_more_seeds_are_asked_for_only_where_fewer_do_not_do():
    asked = []

    def losses(seeds):
        asked.append(seeds)
        return np.array([[1.0], [1.01], [2.0], [0.0], [1.0], [1.0]])[:seeds]

    assert len(check_recipe(np.array([1.005]), losses).retrained) == 2
    assert asked == [2]
    assert len(check_recipe(np.array([1.5]), losses).retrained) == 4
    assert asked == [2, 2, 4]
    with pytest.raises(JobError, match=r"with 6 seeds.* is 5 given, and 1.002 retrained"):
        check_recipe(np.array([5.0]), losses)
    assert asked == [2, 2, 4, 2, 4, 6]


def test_where_seeds_change_nothing_rounding_is_allowed():
    given = np.array([1.0, 2.0])
    assert RecipeCheck(given, np.stack([given, given]) * (1 + 5e-4)).fits
    assert not RecipeCheck(given, np.stack([given, given]) * (1 + 2e-3)).fits


def test_another_base_in_the_same_place_is_another_recipe(tmp_path, classes):
    base = copytree(classes["model"], tmp_path / "base")
    fields = classes | {"model": str(base)}
    before = recipe_of(retraining(tmp_path, fields))
    assert recipe_of(retraining(tmp_path, fields)) == before
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    model.get_input_embeddings().weight.data[0] += 1
    model.base_model.save_pretrained(base)
    after = recipe_of(retraining(tmp_path, fields))
    told = [json.loads(text)["base"] for text in (before, after)]
    assert [name for name in told[0] if told[0][name] != told[1][name]] == ["model.safetensors"]
