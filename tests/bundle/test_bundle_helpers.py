"""Around every stage: errors of the user in one line, the device, weights that are whole, and where things go."""

from __future__ import annotations

import hashlib
import importlib.metadata
import pickle
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from stage_here import run
from torch import nn

import monai_kwtl
from monai_kwtl.bundle import paths
from monai_kwtl.bundle.failures import install_error_hook
from monai_kwtl.bundle.paths import bundle_root, find_bundle, stage_paths
from monai_kwtl.bundle.provenance import score_settings, versions
from monai_kwtl.bundle.workflow import start
from monai_kwtl.errors import KWTLError
from monai_kwtl.networks.device import choose_device
from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.networks.weights import load_weights, start_sha256
from monai_kwtl.utils.hashing import file_sha256

# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def said(monkeypatch, capsys):
    """From an exception that nobody caught to what the user reads."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    install_error_hook()

    def of(error):
        try:
            raise error
        except BaseException:
            sys.excepthook(*sys.exc_info())
        out, err = capsys.readouterr()
        assert out == ""
        return err

    return of


def chain(*errors):
    """The first error, caused by the second, and so on."""
    for outer, inner in zip(errors, errors[1:], strict=False):
        outer.__cause__ = inner
    return errors[0]


def test_what_the_user_can_fix_is_one_line(said):
    assert said(KWTLError("budget must be above 0.")) == "error: budget must be above 0.\n"
    assert said(KWTLError("two\n  lines")) == "error: two lines\n"


def test_monai_wraps_errors_and_they_are_found(said):
    wrapped = chain(RuntimeError("Failed to evaluate"), RuntimeError("Failed to instantiate"), KWTLError("no masks."))
    assert said(wrapped) == "error: no masks.\n"


def test_an_error_of_a_loaders_worker_is_found_in_its_text(said):
    text = (
        "Caught KWTLError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "data.py", line 3, in read\nmonai_kwtl.errors.KWTLError: cannot read a.png: it is cut off.\n'
    )
    assert said(RuntimeError(text)) == "error: cannot read a.png: it is cut off.\n"
    assert said(KWTLError(text)) == "error: cannot read a.png: it is cut off.\n"


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError, OSError])
def test_what_the_operating_system_refuses_names_the_file(said, error):
    err = said(chain(RuntimeError("Failed to run"), error(28, "No space left on device", "out/model.pt")))
    assert err.startswith("error: ") and err.count("\n") == 1
    assert "out/model.pt" in err and "No space left on device" in err


def test_a_bug_keeps_its_traceback(said):
    err = said(chain(RuntimeError("Failed to run"), KeyError("regions")))
    assert "Traceback (most recent call last)" in err and "KeyError: 'regions'" in err and "Failed to run" in err


def test_a_traceback_can_be_asked_for(said, monkeypatch):
    monkeypatch.setenv("KWTL_TRACEBACK", "1")
    err = said(KWTLError("no masks."))
    assert "Traceback (most recent call last)" in err and "KWTLError: no masks." in err


def test_ctrl_c_is_no_error(said):
    err = said(KeyboardInterrupt())
    assert "stopped" in err and "Traceback" not in err and "error" not in err


def test_a_stage_in_a_program_of_somebody_else_leaves_its_hooks(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    start()
    assert sys.excepthook is sys.__excepthook__


# --- where it computes and writes -------------------------------------------------------------------------------------


def test_auto_is_cuda_where_there_is_one(monkeypatch):
    for there, expected in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert choose_device() == choose_device("auto") == torch.device(expected)


def test_a_device_may_be_a_name_or_a_device():
    assert choose_device("cpu") == choose_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("device", ["gpu", "cpu:x", "meta", "", 7, "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(KWTLError, match="device .* cannot be used here; use auto"):
        choose_device(device)


def test_results_are_named_after_data_set_and_stage(tmp_path, monkeypatch):
    images = tmp_path / "my images"
    images.mkdir()
    assert stage_paths(str(images), None, "select") == (images, Path("output/my images/select"))
    assert stage_paths("data/tnbc/", "there", "train") == (Path("data/tnbc"), Path("there"))
    assert stage_paths("/", None, "select").output == Path("output/images/select")
    monkeypatch.chdir(images)
    assert stage_paths(".", None, "select") == (Path("."), Path("output/my images/select"))
    assert list(images.iterdir()) == [], "nothing is made"


def test_without_a_data_set_there_is_the_demo_pool(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(paths, "make_demo_pool", made.append)
    assert stage_paths(None, None, "select") == (Path("output/demo/pool"), Path("output/demo/select"))
    assert stage_paths(None, None, "pretext").dataset == Path("output/demo/pool"), "the stages share it"
    assert stage_paths(None, tmp_path / "out", "select") == (tmp_path / "out" / "pool", tmp_path / "out")
    assert made == [Path("output/demo/pool"), Path("output/demo/pool"), tmp_path / "out" / "pool"]


def test_results_do_not_go_among_the_images(tmp_path):
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / "a.png").write_bytes(b"")
    with pytest.raises(KWTLError, match="is the folder of the images themselves; choose another --output_dir"):
        stage_paths(str(tmp_path / "data"), str(tmp_path / "data" / "images"), "inference")
    assert stage_paths(str(tmp_path / "data"), str(tmp_path / "data"), "inference").output == tmp_path / "data"


def test_without_a_command_line_the_root_is_the_current_folder_where_it_is_a_bundle_else_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours = Path(__file__).resolve().parents[2] / "bundles" / "kwtl"
    assert bundle_root() == str(ours)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text("{}")
    assert bundle_root() == "."
    assert find_bundle() == ours, "configs beside somebody's images are not run"


def test_an_installation_has_its_bundle_inside(tmp_path, monkeypatch):
    installed = tmp_path / "monai_kwtl" / "bundles" / "kwtl"
    (installed / "configs").mkdir(parents=True)
    monkeypatch.setattr(paths.resources, "files", lambda package: tmp_path / package)
    with pytest.raises(KWTLError, match="there is no bundle in .*monai_kwtl.bundles.kwtl: give its folder"):
        find_bundle()
    (installed / "configs" / "metadata.json").write_text("{}")
    assert find_bundle() == installed
    beside = tmp_path / "bundles" / "kwtl" / "configs"
    beside.mkdir(parents=True)
    (beside / "metadata.json").write_text("{}")
    assert find_bundle() == beside.parent, "a clone's, for one can change it"


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def saved(path, thing, **options):
    torch.save(thing, path, **options)
    return path


def other_weights():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).state_dict()


def assert_holds(network, state):
    assert all(torch.equal(value, state[name].to(value.dtype)) for name, value in network.state_dict().items())


@pytest.mark.parametrize("wrap", [None, "model", "network", "state_dict"])
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_are_a_state_dict_or_stand_in_a_dict_of_a_training(small, tmp_path, wrap, zipped):
    state = other_weights()
    thing = state if wrap is None else {wrap: state, "epoch": 3, "optimizer": {"lr": 0.1}}
    path = saved(tmp_path / "model.pt", thing, _use_new_zipfile_serialization=zipped)
    assert load_weights(small, path) is small
    assert_holds(small, state)


def test_weights_of_half_precision_are_widened(small, tmp_path):
    state = {name: value.half() if value.is_floating_point() else value for name, value in other_weights().items()}
    load_weights(small, saved(tmp_path / "model.pt", state))
    assert small[0].weight.dtype == torch.float32
    assert_holds(small, state)


@pytest.mark.parametrize("training", [True, False])
def test_the_network_stays_in_its_mode_and_goes_to_the_device(small, tmp_path, training):
    small.train(training)
    path = saved(tmp_path / "model.pt", other_weights())
    assert load_weights(small, str(path), torch.device("cpu")).training is training
    assert load_weights(small, None, "meta")[0].weight.device.type == "meta"


def test_without_a_checkpoint_the_weights_stay(small):
    before = {name: value.clone() for name, value in small.state_dict().items()}
    assert load_weights(small, None) is small
    assert_holds(small, before)


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def _cut_off(path):
    path.write_bytes(path.read_bytes()[:-50])


def _flipped(path):
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    content[largest.header_offset + 200] ^= 255  # in the numbers
    path.write_bytes(content)


def _emptied(path):
    path.write_bytes(b"")


def _text(path):
    path.write_text("hello")


def _two_letters(path):
    path.write_bytes(b"PK")


@pytest.mark.parametrize("damage", [_cut_off, _flipped, _emptied, _text, _two_letters])
def test_a_damaged_file_is_refused(tmp_path, damage):
    network = FCRN(features=(4, 4, 8, 8))
    path = saved(tmp_path / "model.pt", network.state_dict())
    damage(path)
    with pytest.raises(KWTLError, match=f"{path} is not a readable checkpoint"):
        load_weights(network, path)


def test_a_file_that_runs_code_is_refused_and_runs_none(small, tmp_path):
    for zipped in (True, False):
        path = saved(tmp_path / "evil.pt", {"a": Evil(tmp_path / "run")}, _use_new_zipfile_serialization=zipped)
        with pytest.raises(KWTLError, match="not a readable checkpoint"):
            load_weights(small, path)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil(tmp_path / "run")))
    with pytest.raises(KWTLError, match="not a readable checkpoint"):
        load_weights(small, tmp_path / "plain.pt")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("thing", [[1, 2], torch.zeros(3), {"a": 1}, {"model": {"a": "text"}}])
def test_what_is_no_state_dict_is_refused(small, tmp_path, thing):
    with pytest.raises(KWTLError, match="holds no state_dict; save the network's weights with torch.save"):
        load_weights(small, saved(tmp_path / "model.pt", thing))


def _missing(state):
    del state["1.running_mean"]


def _more(state):
    state["2.bias"] = torch.zeros(1)


def _wider(state):
    state["0.weight"] = torch.zeros(2, 3, 3, 3)


def _empty(state):
    state.clear()


def _of_several_processes(state):
    for name in list(state):
        state[f"module.{name}"] = state.pop(name)


@pytest.mark.parametrize(
    ("change", "first"),
    [
        (_missing, "'1.running_mean' is not"),
        (_more, "'2.bias' is not"),
        (_wider, "'0.weight' is not"),
        (_empty, "'0.bias' and others are not"),
        (_of_several_processes, "'0.bias' and others are not"),
    ],
)
def test_weights_of_another_network_are_refused_and_change_nothing(small, tmp_path, change, first):
    before = {name: value.clone() for name, value in small.state_dict().items()}
    state = OrderedDict(other_weights())
    change(state)
    with pytest.raises(KWTLError, match=f"belongs to another network: {first} the same as in Sequential"):
        load_weights(small, saved(tmp_path / "model.pt", state))
    assert_holds(small, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(small, tmp_path, value):
    state = other_weights()
    state["1.running_var"][1] = value
    with pytest.raises(KWTLError, match="not finite, first in '1.running_var'; its training diverged"):
        load_weights(small, saved(tmp_path / "model.pt", state))


@pytest.mark.parametrize("name", ["none.pt", "."])
def test_a_checkpoint_that_is_not_there_is_said(small, tmp_path, name):
    for ask in (lambda: load_weights(small, tmp_path / name), lambda: start_sha256(tmp_path / name)):
        with pytest.raises(KWTLError, match="there is no checkpoint at .*; give the path of a .pt file with --ckpt"):
            ask()


def test_the_hash_is_that_of_the_bytes(tmp_path):
    for size in (0, 1, (1 << 20) - 1, 1 << 20, 3 << 20):
        content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        (tmp_path / "model.pt").write_bytes(content)
        assert file_sha256(str(tmp_path / "model.pt")) == hashlib.sha256(content).hexdigest()


# --- what results depend on -------------------------------------------------------------------------------------------


def test_versions_are_those_installed():
    assert versions() == {
        "monai_kwtl": monai_kwtl.__version__,
        **{name: importlib.metadata.version(name) for name in ("monai", "torch", "numpy")},
    }


SETTINGS = {"measure": "soft", "adapt_norm": True, "psi": 1.3, "model_sha256": "ab"}
POOL = [{"sha256": "1" * 64, "page": None, "name": "a"}, {"sha256": "2" * 64, "page": 3, "name": "b"}]


def settings(pool=POOL, device="cpu", seed=0, **change):
    return score_settings(SETTINGS | change, pool, torch.device(device), seed)


def test_scores_depend_on_settings_versions_device_and_what_is_fitted_to():
    found = settings()
    assert SETTINGS.items() <= found.items()
    assert found["versions"] == versions() and found["device"] == "cpu"
    others = [settings(psi=1.6), settings(model_sha256="cd"), settings(device="cuda"), settings(POOL[:1])]
    others += [settings([POOL[0], POOL[1] | {"page": 4}]), settings([POOL[0], POOL[1] | {"sha256": "3" * 64}])]
    others += [settings(adapt_norm=False), settings(measure="mc_dropout")]
    assert all(other != found for other in others)


def test_scores_do_not_depend_on_names_order_or_the_number_of_the_gpu():
    assert settings([POOL[1] | {"name": "z"}, POOL[0]]) == settings()
    assert settings(device="cuda:1") == settings(device="cuda")


def test_without_fitting_the_pool_has_no_say():
    assert settings(adapt_norm=False) == settings(POOL[:1], adapt_norm=False)


def test_a_seed_counts_for_dropout_only():
    assert settings(seed=1) == settings(seed=2)
    assert settings(seed=1, measure="mc_dropout") != settings(seed=2, measure="mc_dropout")


def test_a_stage_says_the_nearest_of_an_unknown_option(tmp_path):
    ended = run("inference", dataset_dir=tmp_path, dataset_dri=tmp_path)
    assert ended.status == 1 and ended.err.count("\n") == 1
    assert "unknown option --dataset_dri; did you mean --dataset_dir?" in ended.error
