"""The measure of success on any state entry: what a sensor reports, and balls to stay out of."""

from dataclasses import replace

import numpy as np
import pytest

from gps.costs import EndpointMeasure, StateCost
from gps.errors import ConfigError
from gps.types import Layout, Rollouts

LAYOUT = Layout((("joint_pos", 2), ("sensor:way", 3), ("places", 4)))
PLANE = EndpointMeasure(
    entry="joint_pos", target=(1.0, 0.0), point_size=2, threshold=0.1, avoid=((0.0, 0.0, 0.5),)
)


def rollouts_of(entry, *samples):
    """Rollouts in which one entry takes the given values, (N, T, k), and the others are 9."""
    values = np.array(samples, dtype=float)
    N, T, _ = values.shape
    X = np.full((N, T, LAYOUT.size), 9.0)
    X[:, :, LAYOUT.slice(entry)] = values
    return Rollouts(
        X=X, U=np.zeros((N, T, 1)), obs=np.zeros((N, T, 1)), noise=np.zeros((N, T, 1)),
        layout=LAYOUT,
    )  # fmt: skip


def test_a_sensor_is_measured_and_costs_like_any_entry():
    data = rollouts_of("sensor:way", [[5, 5, 5], [0, 0.3, 0.4]], [[0, 0, 0], [0.01, 0, 0]])
    measure = EndpointMeasure(entry="sensor:way", target=(0, 0, 0), threshold=0.02)
    distance, success = measure.evaluate(data)
    np.testing.assert_allclose(distance, [0.5, 0.01])
    np.testing.assert_array_equal(success, [False, True])
    terms = StateCost(entry="sensor:way", target=0.0, l2=2.0).evaluate(data)
    np.testing.assert_allclose(terms.l[:, -1], [0.25, 1e-4])
    np.testing.assert_allclose(terms.l_x[0, -1], [0, 0, 0, 0.6, 0.8, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("path", "fine"),
    [
        ([[-1, 0.6], [0, 0.6], [1, 0]], True),
        ([[-1, 0.6], [0, 0.4], [1, 0]], False),  # one step inside
        ([[-1, 0.45], [1, 0.45], [1, 0]], False),  # no step inside, but the line between two
        ([[-1, 0.5], [1, 0.5], [1, 0]], True),  # along the border
        ([[-1, 0], [-0.6, 0], [-0.6, 1], [1, 0]], True),  # heads for the ball, turns before it
        ([[0.1, 0], [1, 0]], False),  # starts inside
        ([[1, 0]] * 3, True),  # stands still outside
        ([[0, 0]] * 3, False),  # and inside, far from the target as well
        ([[1, 0]], True),  # one step only
        ([[-1, 2], [np.nan, 2], [1, 0]], False),
    ],
)
def test_a_ball_on_the_way_takes_the_success(path, fine):
    data = rollouts_of("joint_pos", path)
    distance, success = PLANE.evaluate(data)
    assert success[0] == fine
    without = replace(PLANE, avoid=()).evaluate(data)
    np.testing.assert_array_equal(distance, without[0])  # the distance does not know of balls


def test_the_nearest_place_is_that_of_a_fine_search():
    rng = np.random.default_rng(3)
    walks = rng.normal(size=(40, 6, 2))
    walks[:, -1] = PLANE.target
    share = np.linspace(0, 1, 2001)[:, None, None, None]
    between = walks[:, :-1] + share * np.diff(walks, axis=1)
    nearest = np.linalg.norm(between, axis=-1).min(axis=(0, 2))
    data = rollouts_of("joint_pos", *walks)
    for radius in np.quantile(nearest, [0.1, 0.5, 0.9]) + 1e-3:
        _, success = replace(PLANE, avoid=((0.0, 0.0, radius),)).evaluate(data)
        clear = np.abs(nearest - radius) > 1e-4  # the search has an error of its own
        np.testing.assert_array_equal(success[clear], (nearest > radius)[clear])
        assert 0 < success.sum() < 40


def test_every_ball_counts_for_the_point_that_decides():
    path = [[0, 0, 3, 0], [0, 0, 5, 0]]  # two points in the plane: one rests, one moves
    data = rollouts_of("places", path)
    measure = EndpointMeasure(
        entry="places",
        target=(0.0, 0.0, 5.0, 0.0),
        point_size=2,
        success_point=1,
        avoid=((9.0, 9.0, 0.5), (0.0, 0.0, 0.5)),
    )
    assert measure.evaluate(data)[1][0]  # the other point rests in a ball
    assert not replace(measure, success_point=0).evaluate(data)[1][0]
    assert not replace(measure, avoid=((9.0, 9.0, 0.5), (4.0, 0.0, 0.5))).evaluate(data)[1][0]


@pytest.mark.parametrize(
    "avoid", [((0.0, 0.5),), ((0.0, 0.0, 0.0),), ((0.0, np.nan, 1.0),), (3.0,), 3.0, (("a",),)]
)
def test_what_is_no_ball_is_refused(avoid):
    with pytest.raises(ConfigError, match=r"EndpointMeasure\.avoid must be .* finite number"):
        replace(PLANE, avoid=avoid)


def test_balls_are_kept_as_tuples_of_floats():
    measure = replace(PLANE, avoid=[[1, 2, 3]])
    assert measure.avoid == ((1.0, 2.0, 3.0),)
    assert hash(measure) == hash(replace(PLANE, avoid=((1.0, 2.0, 3.0),)))


def test_a_distance_has_the_unit_of_what_is_measured():
    tip = EndpointMeasure(target=(0.0, 0.0, 0.0))
    assert tip.distance_label == "distance (m)"  # end points are places
    assert PLANE.distance_label == "distance"  # joints may be anything
    assert replace(PLANE, unit="rad").distance_label == "distance (rad)"
    assert replace(tip, unit="").distance_label == "distance"
    with pytest.raises(ConfigError, match="unit must be text or None, got 3"):
        EndpointMeasure(target=(0.0, 0.0, 0.0), unit=3)
