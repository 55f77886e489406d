"""An agent behind a socket: the bytes of the agent itself, and safety when a side is gone."""

import hmac
import json
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import gps
from gps.agents import PointMassConfig, arm_reach
from gps.agents.__main__ import agent_config_of, main
from gps.agents._protocol import MAGIC, VERSION, Channel, Message, decode, encode, proof
from gps.agents.remote import RemoteConfig, RemoteError, RobotServer, serve
from gps.errors import ConfigError, SampleFailure, ShapeError, SimulationError
from gps.policies import MLPConfig, initial_policy
from gps.protocols import Agent
from gps.rng import stream
from gps.types import LinearGaussianController

AGENT = PointMassConfig(
    T=12, force_limit=2.0, test_starts=((0.5, 0.2),), start_position_std=0.1, noise_sigma=1.0
)
SECRET = "correct horse battery staple"


class Slow:
    """Point mass that takes its time in every step, and notes its safety stops."""

    def __init__(self, seconds=0.0, stopped=None):
        self.agent, self.seconds, self.stops = AGENT.build(), seconds, []
        self.stopped, self.step = stopped, threading.Event()

    def __getattr__(self, name):
        return getattr(self.agent, name)

    def stop(self):
        self.stops.append(time.monotonic())

    def rollout(self, policy, *args, **kwargs):
        outer = self

        class Act:
            def act(self, x, obs, t, noise):
                if t > 0:
                    outer.step.set()
                time.sleep(outer.seconds)
                return policy.act(x, obs, t, noise)

        return self.agent.rollout(Act(), *args, **kwargs)


class Push:
    """Any policy that is no linear-Gaussian controller."""

    def act(self, x, obs, t, noise):
        return 0.5 * noise - 0.3 * x[:, : noise.shape[1]]


def controller(agent, seed=0):
    rng, nx = stream(seed, "gains"), agent.layout.size
    K, k = 0.2 * rng.normal(size=(agent.T, agent.nu, nx)), rng.normal(size=(agent.T, agent.nu))
    chol = np.tril(rng.normal(size=(agent.T, agent.nu, agent.nu)))
    return LinearGaussianController(K=K, k=k, chol=chol)


def draw(agent, N=3, seed=0):
    noise = stream(seed, "noise").standard_normal((N, agent.T, agent.nu))
    return noise, stream(seed, "start").standard_normal((N, agent.n_start))


def assert_same_bytes(a, b):
    for name in ("X", "U", "obs", "noise"):
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name
    assert a.jacobians.keys() == b.jacobians.keys()
    for name, J in a.jacobians.items():
        assert J.tobytes() == b.jacobians[name].tobytes(), name
    assert (a.layout, a.condition) == (b.layout, b.condition)


@contextmanager
def served(agent, **options):
    server = RobotServer(agent, **options)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join(10)
        assert not thread.is_alive()


def client(server, **options):
    return RemoteConfig(port=server.port, **options).build()


def wait_for(what, seconds=5.0):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def neural(agent):
    return initial_policy(
        MLPConfig(hidden=(8,)), agent.obs_layout.size, agent.nu, stream(0, "initial policy")
    )


@pytest.mark.parametrize("agent_config", [AGENT, replace(arm_reach(), T=8)], ids=["point", "arm"])
def test_the_bytes_are_those_of_a_local_rollout(agent_config):
    local = agent_config.build()
    with served(agent_config.build()) as server:
        remote = client(server)
        assert isinstance(remote, Agent)
        noise, start = draw(local)
        last = local.n_conditions - 1
        for policy in (controller(local), neural(local), Push()):
            for m, test in ((last, False), (0, True)):
                here = local.rollout(policy, m, noise, start, test=test)
                assert_same_bytes(remote.rollout(policy, m, noise, start, test=test), here)
            here = local.rollout(policy, 0, noise)
            assert_same_bytes(remote.rollout(policy, 0, noise), here)
        for name in ("layout", "obs_layout", "T", "dt", "nu", "n_start", "n_conditions"):
            assert getattr(remote, name) == getattr(local, name), name
        assert remote.n_test_conditions == local.n_test_conditions
        assert (
            remote.start_state(0, test=True).tobytes() == local.start_state(0, test=True).tobytes()
        )
        np.testing.assert_array_equal(remote.control_range, local.control_range)


def test_only_other_policies_are_asked_in_every_step():
    with served(AGENT.build()) as server:
        remote, asked = client(server), []

        class Counted(LinearGaussianController):
            def act(self, x, obs, t, noise):
                asked.append((t, x.shape, obs.shape))
                return super().act(x, obs, t, noise)

        own = controller(AGENT.build())
        a = remote.rollout(own, 0, draw(remote)[0])
        b = remote.rollout(Counted(K=own.K, k=own.k, chol=own.chol), 0, draw(remote)[0])
        assert asked == [(t, (3, 4), (3, 4)) for t in range(12)]
        assert_same_bytes(a, b)


def test_a_run_stops_with_its_robot_and_is_resumed(tmp_path):
    experiment = gps.load("point_mass")
    experiment = replace(experiment, agent=replace(experiment.agent, T=30), iterations=2)
    want = [r.row["cost_mean"] for r in gps.run(experiment)]
    with served(experiment.agent.build()) as server:
        agent_config = RemoteConfig(port=server.port)
        run = gps.run(replace(experiment, agent=agent_config), out=tmp_path / "run")
        got = [next(run).row["cost_mean"]]
    with pytest.raises(RemoteError, match="condition 0"):
        next(run)
    with served(experiment.agent.build(), port=server.port):
        got += [r.row["cost_mean"] for r in gps.resume(tmp_path / "run")]
    assert got == want
    assert len(got) == 2


def test_what_holds_for_all_failed_samples_is_told_too():
    error = SimulationError(0, [SampleFailure(0, 1, "unstable")], "simulated at 0.01 s")

    class Failing(Slow):
        def rollout(self, *args, **kwargs):
            raise error

    with served(Failing()) as server:
        remote = client(server)
        with pytest.raises(SimulationError, match=r"unstable\); simulated at 0.01 s$"):
            remote.rollout(Push(), 0, *draw(remote))


def test_failed_samples_and_wrong_inputs_are_told_as_by_the_agent():
    class Nan(Push):
        def act(self, x, obs, t, noise):
            u = super().act(x, obs, t, noise)
            u[1, 0] = np.nan if t >= 4 else 0.0
            return u

    class Flat:
        def act(self, x, obs, t, noise):
            return np.zeros(2)

    agent = Slow()
    with served(agent) as server:
        remote = client(server)
        noise, start = draw(remote)
        with pytest.raises(SimulationError, match="condition 2") as caught:
            remote.rollout(Nan(), 2, noise, start)
        assert [(f.sample, f.t) for f in caught.value.failures] == [(1, 4)]
        with pytest.raises(ShapeError, match="noise must have shape"):
            remote.rollout(Push(), 0, noise[:, :-1])
        with pytest.raises(ShapeError, match="condition 9 does not exist"):
            remote.rollout(Push(), 9, noise)
        gains = controller(remote)
        with pytest.raises(RemoteError, match="array 'K'"):
            remote.rollout(replace(gains, K=gains.K[:, :, :3]), 0, noise)
        assert not agent.stops  # nothing moved, or the simulator ended by itself
        with pytest.raises(ShapeError, match="actions must have shape"):
            remote.rollout(Flat(), 0, noise)
        wait_for(lambda: agent.stops)  # left in the middle
        remote.rollout(Push(), 0, noise)


CLIENT = """
import sys
import numpy as np
from gps.agents.remote import RemoteConfig
from gps.types import LinearGaussianController

class Push:
    def act(self, x, obs, t, noise):
        return 0.5 * noise - 0.3 * x[:, :2]

agent, shape = RemoteConfig(port=int(sys.argv[1])).build(), (12, 2)
gains = LinearGaussianController(np.ones((*shape, 4)), np.zeros(shape), np.ones((*shape, 2)))
agent.rollout(Push() if sys.argv[2] == "steps" else gains, 0, np.zeros((3, *shape)))
"""


@contextmanager
def process(*args):
    command = [sys.executable, *map(str, args)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        child.stderr.close()


def test_a_killed_robot_is_noticed_at_once_and_a_new_one_is_used():
    class Killer(Push):
        def act(self, x, obs, t, noise):
            if t == 3:
                first.send_signal(signal.SIGKILL)
            return super().act(x, obs, t, noise)

    with process("-m", "gps.agents", "point_mass") as first:
        port = int(first.stdout.readline().rsplit(":", 1)[1])
        remote = RemoteConfig(port=port, step_timeout=2.0).build()
        noise, start = draw(remote)
        begin = time.monotonic()
        with pytest.raises(RemoteError) as caught:
            remote.rollout(Killer(), 1, noise, start)
        assert time.monotonic() - begin < 2.0
        for part in (f"127.0.0.1:{port}", "condition 1", "samples 0 to 2", "t=3"):
            assert part in str(caught.value)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
        first.wait()
        with pytest.raises(RemoteError, match="no connection within"):
            remote.rollout(Push(), 1, noise, start)
        agent_config = PointMassConfig()
        with served(agent_config.build(), port=port):  # another server, and the same agent goes on
            here = agent_config.build().rollout(Push(), 1, noise, start)
            assert_same_bytes(remote.rollout(Push(), 1, noise, start), here)


@pytest.mark.parametrize("mode", ["steps", "gains"])
def test_a_killed_client_stops_the_robot_which_then_serves_the_next(mode, tmp_path):
    note, agent = tmp_path / "stopped", Slow(0.15)
    with (
        served(agent, on_stop=note.write_text) as server,
        process("-c", CLIENT, server.port, mode) as lost,
    ):
        assert agent.step.wait(30)
        lost.kill()
        wait_for(note.exists, 2.0)
        assert len(agent.stops) == 1
        wait_for(lambda: "127.0.0.1" in note.read_text())
        agent.seconds = 0.0
        remote = client(server)
        here = AGENT.build().rollout(Push(), 0, draw(remote)[0])
        assert_same_bytes(remote.rollout(Push(), 0, draw(remote)[0]), here)
        assert len(agent.stops) == 1


def test_a_silent_client_stops_the_robot():
    class Asleep(Push):
        def act(self, x, obs, t, noise):
            time.sleep(0.6 if t == 5 else 0.0)
            return super().act(x, obs, t, noise)

    agent = Slow()
    with served(agent, step_timeout=0.2) as server:
        remote = client(server)
        with pytest.raises(RemoteError, match=r"t=5: .*no action for step 5 within 0\.2 s"):
            remote.rollout(Asleep(), 0, draw(remote)[0])
        assert len(agent.stops) == 1
        remote.rollout(Push(), 0, draw(remote)[0])


def test_the_first_action_may_take_longer():
    class Loading(Push):
        def act(self, x, obs, t, noise):
            time.sleep(0.5 if t == 0 else 0.0)
            return super().act(x, obs, t, noise)

    agent = Slow()
    with served(agent, step_timeout=0.2) as server:
        remote = client(server)
        remote.rollout(Loading(), 0, draw(remote)[0])
    assert not agent.stops
    noise = draw(AGENT.build())[0]
    with (
        served(agent, step_timeout=5.0, start_timeout=0.2) as server,
        pytest.raises(RemoteError, match="no action for step 0"),
    ):
        client(server).rollout(Loading(), 0, noise)


@contextmanager
def impostor(*answers, connections=1):
    """A robot's side that says what it is told to, and then nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept = []

        def run():
            for _ in range(connections):
                sock, _ = listener.accept()
                kept.append(sock)
                for answer in answers:
                    sock.sendall(answer)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(5)
        for sock in kept:
            sock.close()


def frame(type, fields=None, arrays=None):
    return b"".join(encode(Message(type, fields or {}, arrays or {})))


CHALLENGE = frame("challenge", {"version": VERSION, "nonce": "0" * 64, "secret": False})


def test_every_wait_of_the_client_ends():
    with impostor() as port:
        agent = RemoteConfig(port=port, connect_timeout=0.2).build()
        begin = time.monotonic()
        with pytest.raises(RemoteError, match=r"no answer within 0\.2 s"):
            _ = agent.T
        assert time.monotonic() - begin < 1.5
    with served(Slow(0.05)) as server:
        remote = client(server, rollout_timeout=0.2)
        with pytest.raises(RemoteError, match=r"no result after 0\.2 s \(rollout_timeout\)"):
            remote.rollout(controller(remote), 0, draw(remote)[0])
    with served(Slow(0.05)) as server:  # signs of life come more often than results
        remote = client(server, step_timeout=0.3)
        remote.rollout(controller(remote), 0, draw(remote)[0])


def test_a_robot_that_hangs_is_noticed():
    with served(AGENT.build()) as server:
        fields, arrays = server.welcome()
    welcome = frame("welcome", {**fields, "mac": ""}, arrays)
    with impostor(CHALLENGE, welcome, connections=2) as port:
        remote = RemoteConfig(port=port, step_timeout=0.2).build()
        begin = time.monotonic()
        with pytest.raises(RemoteError, match=r"condition 1, .* silent for 0\.2 s"):
            remote.rollout(Push(), 1, draw(AGENT.build())[0])
        assert time.monotonic() - begin < 1.5


def test_clients_wait_in_a_queue():
    agent = Slow(0.03)
    with served(agent) as server:
        remote, done = client(server), []
        noise = draw(remote)[0]
        here = AGENT.build().rollout(Push(), 0, noise)

        def use():
            done.append(remote.rollout(Push(), 0, noise))

        threads = [threading.Thread(target=use) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert agent.step.wait(5)
        with pytest.raises(RemoteError, match=r"busy: still in the queue after 0\.1 s"):
            client(server, queue_timeout=0.1).rollout(Push(), 0, noise)
        for thread in threads:
            thread.join(20)
        assert len(done) == 3
        for rollouts in done:
            assert_same_bytes(rollouts, here)
        assert not agent.stops


def test_secrets(tmp_path):
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text(SECRET + "\n")
    wrong.write_text(SECRET.upper())
    with served(AGENT.build(), secret=SECRET) as server:
        assert client(server, secret_file=str(right)).T == 12
        with pytest.raises(RemoteError, match="the secret is wrong"):
            _ = client(server, secret_file=str(wrong)).T
        with pytest.raises(RemoteError, match="has a secret, this side has none"):
            _ = client(server).T
        with pytest.raises(ConfigError, match="secret_file cannot be read"):
            _ = client(server, secret_file=str(tmp_path / "none")).T
        # one that ignores that a proof is asked for learns nothing of the robot
        with Channel(socket.create_connection(("127.0.0.1", server.port))) as channel:
            channel.send("hello", {"version": 1, "nonce": "0" * 64, "silence": 1.0}, silence=5)
            assert channel.receive(5).type == "challenge"
            channel.send("proof", {"mac": ""}, silence=5)
            assert channel.receive(5).fields["kind"] == "refused"
    with (
        served(AGENT.build()) as server,
        pytest.raises(RemoteError, match="the robot's side has none"),
    ):
        _ = client(server, secret_file=str(right)).T
    # a robot's side that asks for a secret that it does not know
    asks = frame("challenge", {"version": VERSION, "nonce": "0" * 64, "secret": True})
    with served(AGENT.build()) as server:
        fields, arrays = server.welcome()
    with (
        impostor(asks, frame("welcome", {**fields, "mac": "0" * 64}, arrays)) as port,
        pytest.raises(RemoteError, match="does not know the secret"),
    ):
        _ = RemoteConfig(port=port, secret_file=str(right)).build().T


def test_the_proof_is_the_one_of_the_manual():
    nonces = "0" * 64, "f" * 64
    manual = (Path(__file__).parents[2] / "docs" / "remote.md").read_text()
    for side in ("client", "server"):
        text = f"gps-remote-1 {side} {nonces[0]} {nonces[1]}"
        want = hmac.digest(SECRET.encode(), text.encode(), "sha256").hex()
        assert proof(SECRET, side, *nonces) == want
        assert want in manual


def test_beyond_this_machine_only_with_a_secret():
    for host in ("0.0.0.0", "robot.example", "192.0.2.1", "::"):
        with pytest.raises(ConfigError, match="a shared secret is needed"):
            serve(AGENT.build(), host=host)
        with pytest.raises(ConfigError, match=r"RemoteConfig\.host.*secret is needed"):
            RemoteConfig(host=host, port=7000)
    with pytest.raises(ConfigError, match="at least 16 characters"):
        serve(AGENT.build(), host="0.0.0.0", secret="short")
    with served(AGENT.build(), host="0.0.0.0", secret=SECRET) as server:
        assert server.port > 0


HELLO = {"version": VERSION, "nonce": "0" * 64, "silence": 1.0}
NESTED = b"[" * 3000
FOREIGN = {
    "http": b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "long header": MAGIC + struct.pack("<IQ", 2**32 - 1, 0),
    "long body": MAGIC + struct.pack("<IQ", 2, 2**63) + b"{}",
    "no JSON": MAGIC + struct.pack("<IQ", 4, 0) + b"{{{{",
    "no UTF-8": MAGIC + struct.pack("<IQ", 4, 0) + b"\xff\xfe\xff\xfe",
    "nested": MAGIC + struct.pack("<IQ", len(NESTED), 0) + NESTED,
    "no object": MAGIC + struct.pack("<IQ", 2, 0) + b"[]",
    "wrong order": frame("rollout", {"condition": 0}),
    "no nonce": frame("hello", {**HELLO, "nonce": "\ud800"}),
    "other version": frame("hello", {**HELLO, "version": VERSION + 1}),
    "no silence": frame("hello", {**HELLO, "silence": -1}),
}


@pytest.mark.parametrize("data", FOREIGN.values(), ids=FOREIGN)
def test_foreign_bytes_are_refused(data):
    with served(AGENT.build()) as server:
        with socket.create_connection(("127.0.0.1", server.port), 5) as sock:
            sock.sendall(data)
            answer = b""
            try:
                while got := sock.recv(4096):
                    answer += got
            except ConnectionResetError:
                pass
            if answer:
                n, size = struct.unpack("<IQ", answer[4:16])
                assert size == 0
                assert json.loads(answer[16 : 16 + n])["kind"] in ("protocol", "refused")
        assert client(server).T == 12  # and the next is served


@pytest.mark.parametrize(
    ("listed", "body"),
    [
        ([["a", [2]]], b"\0" * 8),
        ([["a", [1]]], b"\0" * 16),
        ([["a", [1]], ["a", [1]]], b"\0" * 16),
        ([["a", [-1]]], b""),
        ([["a", [True]]], b"\0" * 8),
        ([["a", [0] + [2**31 - 1] * 7]], b""),
        ([["a"]], b""),
        ([[["a"], [1]]], b"\0" * 8),
        ({"a": [1]}, b""),
        (None, b""),
    ],
)
def test_arrays_that_are_none_are_refused(listed, body):
    with pytest.raises(RemoteError):
        decode(json.dumps({"type": "x", "arrays": listed}).encode(), body)


def test_frames_keep_every_bit():
    values = np.array([[0.0, -0.0, np.nan], [np.inf, 5e-324, 0.1]])
    parts = encode(Message("x", {"a": [1, "two"]}, {"v": values, "none": np.zeros((3, 0))}))
    n, size = struct.unpack("<IQ", parts[0][4:16])
    assert (parts[0][:4], n, size) == (b"GPSR", len(parts[0]) - 16, 48)
    back = decode(parts[0][16:], b"".join(parts[1:]))
    assert back.fields == {"a": [1, "two"]}
    assert back.arrays["v"].tobytes() == values.tobytes()
    assert back.arrays["none"].shape == (3, 0)


def test_messages_have_a_longest():
    with served(AGENT.build(), max_bytes=4000) as server:
        remote = client(server)
        with pytest.raises(RemoteError, match="above the limit of 4000"):
            remote.rollout(Push(), 0, draw(remote, N=50)[0])  # to the robot
        with pytest.raises(RemoteError, match="above the limit of 4000"):
            remote.rollout(Push(), 0, draw(remote, N=6)[0])  # only the answer is too long
        remote.rollout(Push(), 0, draw(remote, N=1)[0])


def test_rules_broken_in_the_middle_stop_the_robot():
    agent = Slow()
    with served(agent) as server:
        for answer in (
            ("action", {"t": 0}, {"u": np.zeros((3, 3))}),
            ("action", {"t": 7}, {"u": np.zeros((3, 2))}),
            ("action", {}, {}),
            ("rollout", {}, {}),
        ):
            before = len(agent.stops)
            with Channel(socket.create_connection(("127.0.0.1", server.port))) as channel:
                channel.trusted = True
                channel.send("hello", HELLO, silence=5)
                assert channel.receive(5).type == "challenge"
                channel.send("proof", {"mac": ""}, silence=5)
                assert channel.receive(5).type == "welcome"
                fields = {"condition": 0, "test": False, "mode": "steps"}
                channel.send("rollout", fields, {"noise": np.zeros((3, 12, 2))}, silence=5)
                while channel.receive(5).type != "act":
                    pass
                channel.send(*answer, silence=5)
                while (message := channel.receive(5)).type == "alive":
                    pass
                assert (message.type, message.fields["kind"]) == ("error", "protocol")
            wait_for(lambda n=before: len(agent.stops) == n + 1)
        assert client(server).T == 12


def test_a_word_out_of_turn_stops_the_robot():
    agent = Slow(0.1)
    with served(agent) as server:
        with Channel(socket.create_connection(("127.0.0.1", server.port))) as channel:
            channel.trusted = True
            channel.send("hello", HELLO, silence=5)
            assert channel.receive(5).type == "challenge"
            channel.send("proof", {"mac": ""}, silence=5)
            assert channel.receive(5).type == "welcome"
            gains = controller(agent)
            arrays = {"noise": np.zeros((1, 12, 2)), "K": gains.K, "k": gains.k, "chol": gains.chol}
            fields = {"condition": 0, "test": False, "mode": "gains"}
            channel.send("rollout", fields, arrays, silence=5)
            assert agent.step.wait(5)
            channel.send("action", {"t": 1}, {"u": np.zeros((1, 2))}, silence=5)
            wait_for(lambda: agent.stops, 0.6)  # before the rollout would have ended
        agent.seconds = 0.0
        client(server).rollout(Push(), 0, np.zeros((1, 12, 2)))
        assert len(agent.stops) == 1


def test_the_robot_that_is_expected():
    want = {
        "layout": (("position", 2), ("velocity", 2)),
        "T": 12,
        "dt": 0.05,
        "nu": 2,
        "n_conditions": 4,
    }
    with served(AGENT.build()) as server:
        assert client(server, **want).T == 12
        want |= {"T": 13, "nu": 1}
        with pytest.raises(ConfigError, match="T is 12, expected 13; nu is 2, expected 1"):
            _ = client(server, **want).T
        remote = client(server)
        noise = draw(remote)[0]
    with (
        served(replace(AGENT, starts=((1.0, 0.0),)).build(), port=server.port),
        pytest.raises(RemoteError, match="its agent has changed"),
    ):
        remote.rollout(Push(), 0, noise)


def test_a_fault_of_the_agent_stops_it_and_is_told():
    class Broken(Slow):
        def rollout(self, policy, *args, **kwargs):
            raise ZeroDivisionError("motor 3")

    agent = Broken()
    with served(agent) as server:
        with pytest.raises(RemoteError, match="ZeroDivisionError: motor 3"):
            client(server).rollout(Push(), 0, np.zeros((1, 12, 2)))
        assert len(agent.stops) == 1


def test_a_robot_that_cannot_be_stopped_is_not_served():
    def fail(reason):
        raise OSError("no brake")

    class Leave(Push):
        def act(self, x, obs, t, noise):
            raise KeyError("own fault")

    server = RobotServer(AGENT.build(), on_stop=fail)
    ended = []

    def run():
        with pytest.raises(OSError, match="no brake"):
            server.run()
        ended.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    remote = client(server)
    with pytest.raises(KeyError, match="own fault"):
        remote.rollout(Leave(), 0, np.zeros((1, 12, 2)))
    thread.join(10)
    assert ended
    with pytest.raises(RemoteError, match="no connection"):
        remote.rollout(Push(), 0, np.zeros((1, 12, 2)))


def test_results_that_are_no_numbers_are_failed_samples():
    class Nan:
        def __getattr__(self, name):
            return getattr(AGENT.build(), name)

        def rollout(self, *args, **kwargs):
            r = AGENT.build().rollout(*args, **kwargs)
            X = r.X.copy()
            X[2, 5, 1] = np.nan
            return replace(r, X=X)

    with served(Nan()) as server:
        remote = client(server)
        with pytest.raises(SimulationError, match="X is NaN") as caught:
            remote.rollout(Push(), 0, draw(remote)[0])
        assert [(f.sample, f.t) for f in caught.value.failures] == [(2, 5)]


def test_samples_one_by_one_are_counted():
    class OneByOne(Slow):
        def rollout(self, policy, condition, noise, start_noise=None, *, test=False):
            parts = [self.agent.rollout(policy, condition, n[None]) for n in noise]
            X, U, obs, noise = (
                np.concatenate([getattr(p, name) for p in parts])
                for name in ("X", "U", "obs", "noise")
            )
            return replace(parts[0], X=X, U=U, obs=obs, noise=noise)

    calls = []

    class Quit(Push):
        def act(self, x, obs, t, noise):
            calls.append(len(x))
            time.sleep(0.4 if len(calls) == 12 + 12 + 4 else 0.0)
            return super().act(x, obs, t, noise)

    with served(OneByOne(), step_timeout=0.1) as server:
        remote = client(server)
        with pytest.raises(RemoteError, match=r"condition 0, sample 2, t=3: "):
            remote.rollout(Quit(), 0, draw(remote, N=4)[0])


def test_the_configuration_is_a_value():
    config = RemoteConfig(port=7000, layout=[["position", 2]])
    assert hash(config) == hash(replace(config))
    assert pickle.loads(pickle.dumps(config)) == config
    config.build()  # connects to nothing


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"port": 0}, r"RemoteConfig\.port"),
        ({"port": 70000}, r"\.port"),
        ({"host": ""}, r"\.host"),
        ({"connect_timeout": 0.0}, r"\.connect_timeout must be a number above 0 s"),
        ({"step_timeout": -1.0}, r"\.step_timeout"),
        ({"rollout_timeout": float("inf")}, r"\.rollout_timeout"),
        ({"queue_timeout": float("nan")}, r"\.queue_timeout"),
        ({"max_bytes": 0}, r"\.max_bytes"),
        ({"layout": (3,)}, r"\.layout"),
        ({"T": 0}, r"\.T must be"),
        ({"dt": 0.0}, r"\.dt"),
    ],
)
def test_wrong_configurations(changes, match):
    with pytest.raises(ConfigError, match=match):
        RemoteConfig(**{"port": 7000, **changes})
    for option in ("step_timeout", "start_timeout", "max_bytes"):
        with pytest.raises(ConfigError, match=option):
            serve(AGENT.build(), **{option: 0})
    with pytest.raises(ConfigError, match="members of Agent"):
        serve(3)


def test_the_command_serves_an_agent_and_ends_by_a_signal():
    with process("-m", "gps.agents", "point_mass", "--real-time", "100") as child:
        port = int(child.stdout.readline().rsplit(":", 1)[1])
        assert RemoteConfig(port=port).build().n_conditions == 4
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 0
        errors = child.stderr.read()
    assert "Traceback" not in errors


OWN_AGENT = """
from dataclasses import replace
import gps
from gps.agents import PointMassConfig

experiment = replace(gps.load("point_mass"), agent=PointMassConfig(T=7, starts=((1.0, 2.0),)))
"""


def test_any_experiment_or_file_names_an_agent(tmp_path):
    assert agent_config_of("cartpole") == gps.agents.cartpole()  # no experiment's name
    assert agent_config_of("door") == gps.load("door").agent
    path = tmp_path / "own.py"
    path.write_text(OWN_AGENT)
    with process("-m", "gps.agents", str(path)) as child:
        line = child.stdout.readline()
        assert line.startswith(f"serving {path} at 127.0.0.1:"), child.stderr.read()
        remote = RemoteConfig(port=int(line.rsplit(":", 1)[1])).build()
        assert (remote.T, remote.n_conditions) == (7, 1)
        np.testing.assert_array_equal(remote.start_state(0)[:2], [1.0, 2.0])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("cartpol", "unknown agent 'cartpol'; did you mean 'cartpole'? known: acrobot, "),
        ("no/such.py", "no/such.py does not exist"),
        ("broken.py", "broken.py:1: NameError: name 'nothing' is not defined"),
        ("peg_insertion_images", "serve an agent without cameras"),
    ],
)
def test_an_agent_that_cannot_be_served_is_one_line(
    argument, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("nothing")
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main([argument]) == 2
    finally:
        signal.signal(signal.SIGTERM, before)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
