"""A MuJoCo agent in code: an MjSpec function, a sensor in the state, a target, a randomised mass.

You learn: how to build a model in Python, to name its sensors as entries of the state, to draw
conditions that move a target, and to give every rollout its own mass; gps run takes this file too.
"""

import mujoco

import gps
from gps.agents import MujocoConfig, Randomise, sample_conditions
from gps.algorithms import StepConfig, TrajOptConfig
from gps.control import HoldConfig
from gps.costs import ActionCost, EndpointMeasure, StateCost

TARGETS = ("target", (-0.5, -0.5, 0.0), (0.5, 0.5, 0.0))  # a box to draw from, in m
AWAY = "sensor:target_to_puck"  # m, along the world's axes; zero at the target


def puck() -> mujoco.MjSpec:
    """A puck on two slides, pushed by forces, and a target that is a mocap body."""
    spec = mujoco.MjSpec()
    body = spec.worldbody.add_body(name="puck")
    body.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[0.05, 0, 0], mass=1.0)
    body.add_site(name="puck")
    for name, axis in (("x", [1, 0, 0]), ("y", [0, 1, 0])):
        body.add_joint(name=name, type=mujoco.mjtJoint.mjJNT_SLIDE, axis=axis, damping=1.0)
        motor = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        motor.set_to_motor()
    target = spec.worldbody.add_body(name="target", mocap=True)
    target.add_site(name="target", rgba=[0.1, 0.6, 0.2, 1])
    sensor = spec.add_sensor(name="target_to_puck", type=mujoco.mjtSensor.mjSENS_FRAMEPOS)
    sensor.objtype, sensor.objname = mujoco.mjtObj.mjOBJ_SITE, "puck"
    sensor.reftype, sensor.refname = mujoco.mjtObj.mjOBJ_SITE, "target"
    return spec


experiment = gps.Experiment(
    agent=MujocoConfig(
        model=puck,
        T=40,
        state=("joint_pos", "joint_vel", AWAY),
        conditions=sample_conditions(3, seed=0, mocap_boxes=(TARGETS,)),
        randomise=(Randomise(what="body_mass", names=("puck",), std=0.1),),  # by a tenth
    ),
    cost=StateCost(entry=AWAY, target=0.0, l2=10.0) + ActionCost(weights=0.01),
    initial=HoldConfig(),
    measure=EndpointMeasure(entry=AWAY, target=(0.0, 0.0, 0.0), threshold=0.05, unit="m"),
    algorithm=TrajOptConfig(step=StepConfig(kl_max=2.0)),
    iterations=6,
)

if __name__ == "__main__":
    for report in gps.run(experiment):
        print(f"{report.iteration}: {1e3 * report.row['local_distance_max']:6.1f} mm at worst")
