"""A stranger's program: what a network needs works, and whatever else it holds never runs."""

import io
import json
import pickle
import zipfile

import pytest
import torch
from torch import nn
from torch._export.serde.schema import SCHEMA_VERSION, ExportedProgram
from torch._export.serde.serialize import serialize

from elbocli.errors import FormatError
from elbocli.files.pt2_check import load_program

LAYOUTS = ("new", "old") if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8) else ("old",)
"""Layouts of files: torch up to 2.7 wrote the old one alone, later ones read both."""
OLD = {
    "models/model.json": "serialized_exported_program.json",
    "data/sample_inputs/model.pt": "serialized_example_inputs.pt",
}
"""Names of the same parts in the new layout and in the old."""


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)
        self.register_buffer("scale", torch.tensor([0.5]))

    def forward(self, images):
        x = self.norm(self.conv(images.float() / 127.5 - 1)).relu()
        x = torch.cat([x.mean((2, 3)), x.flatten(2).amax(2)], 1)[:, :8] * self.scale
        return x, self.head(x)


@pytest.fixture(scope="session")
def net():
    return Net().eval()


@pytest.fixture(scope="session")
def program(net):
    batch = torch.export.Dim("batch", min=1, max=512)
    return torch.export.export(net, (torch.zeros(2, 3, 16, 16, dtype=torch.uint8),), dynamic_shapes=({0: batch},))


@pytest.fixture(scope="session", params=LAYOUTS)
def layout(request):
    return request.param


@pytest.fixture(scope="session")
def good(program, layout, tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "net.pt2"
    if layout == "new":
        torch.export.save(program, path)
        return path
    found = serialize(program)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serialized_exported_program.json", found.exported_program)
        archive.writestr("serialized_state_dict.pt", found.state_dict)
        archive.writestr("serialized_constants.pt", found.constants)
        archive.writestr("serialized_example_inputs.pt", found.example_inputs)
        archive.writestr("version", ".".join(map(str, SCHEMA_VERSION)))
    return path


@pytest.fixture
def edited(good, layout, tmp_path):
    """edited(change, **records): the good program with its graph changed and records, by new names, added or replaced."""

    def edit(change=lambda model: None, records=None):
        path = tmp_path / "bad.pt2"
        folder, names = ("net/", {}) if layout == "new" else ("", OLD)
        with zipfile.ZipFile(good) as archive:
            content = {name.partition("/")[2] if folder else name: archive.read(name) for name in archive.namelist()}
        graph = names.get("models/model.json", "models/model.json")
        model = json.loads(content[graph])
        change(model)
        content[graph] = json.dumps(model).encode()
        content |= {names.get(name, name): data for name, data in (records or {}).items()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in content.items():
                archive.writestr(folder + name, data)
        return path

    return edit


@pytest.fixture
def only_new(layout):
    if layout != "new":
        pytest.skip("of the new layout")


@pytest.fixture
def only_old(layout):
    if layout != "old":
        pytest.skip("of the old layout")


@pytest.fixture
def command(bomb):
    return f"mkdir {bomb.folder}"


def nodes(model):
    return model["graph_module"]["graph"]["nodes"]


def size(model, expression):
    model["graph_module"]["graph"]["tensor_values"]["images"]["sizes"][0] = {
        "as_expr": {"expr_str": expression, "hint": None}
    }


def images(n):
    return torch.randint(0, 256, (n, 3, 16, 16), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_a_good_program_gives_the_same_outputs(good, net, n):
    program = load_program(good)
    with torch.inference_mode():
        for one, other in zip(program(images(n)), net(images(n)), strict=True):
            assert torch.equal(one, other)


def test_an_untouched_copy_loads(edited, net):
    assert torch.equal(load_program(edited())(images(3))[1], net(images(3))[1])


# Attacks. Those that work on torch.export.load itself are shown to.


def test_a_size_that_is_code_is_refused_and_not_run(edited, bomb, command):
    path = edited(lambda model: size(model, f"__import__('os').system('{command}')"))
    with pytest.raises(FormatError, match="not a plain size expression"):
        load_program(path)
    assert not bomb.went_off
    with pytest.raises(Exception):  # noqa: B017 - whatever torch says after running it
        torch.export.load(path)
    assert bomb.went_off


@pytest.mark.parametrize(
    "expression",
    [
        "Symbol('s0', positive=True, integer=True).__class__",
        "().__class__.__base__.__subclasses__()",
        "eval('1')",
        "lambda: 1",
        "Symbol('s0 or 1')",
        "[1]",
        "exec",
        "s0.x",
        "open('x', 'w')",
        'Symbol("s0")',
        "Integer(1)\n",
        "Function('f')(1)",
        "1 if True else 2",
        "Add(1, 2) + 1",
    ],
)
def test_a_size_that_is_more_than_sums_of_symbols_is_refused(edited, expression):
    with pytest.raises(FormatError, match="refused"):
        load_program(edited(lambda model: size(model, expression)))


def test_guards_that_are_code_are_dropped_and_not_run(edited, net, bomb, command):
    path = edited(lambda model: model.__setitem__("guards_code", [f"__import__('os').system('{command}') == 0"]))
    assert torch.equal(load_program(path)(images(3))[0], net(images(3))[0])
    assert not bomb.went_off
    if "guards_code" in ExportedProgram.__dataclass_fields__:
        torch.export.load(path).module()(images(3))
        assert bomb.went_off


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.ops.os.system",
        "builtins.eval",
        "_operator.methodcaller",
        "os.system",
        "torch.load",
        "torch.hub.load",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.save.default",
        "torch.ops.higher_order.map",
        "torch.ops.aten.add.Tensor.x",
        "_operator.attrgetter",
        "math.__loader__",
        "torch.ops.aten.add.Tensor\n",
    ],
)
def test_a_function_that_is_no_tensor_operation_is_refused_and_not_run(edited, bomb, command, target):
    boom = {
        "target": target,
        "inputs": [{"name": "command", "arg": {"as_string": command}, "kind": 1}],
        "outputs": [],
        "metadata": {},
        "is_hop_single_tensor_return": None,
        "name": "boom",
    }
    for change in (
        lambda model: nodes(model).insert(0, boom),
        lambda model: nodes(model)[3].__setitem__("target", target),
    ):
        with pytest.raises(FormatError, match="refused"):
            load_program(edited(change))
    assert not bomb.went_off


def test_an_argument_that_is_a_function_is_refused(edited, bomb):
    def change(model):
        nodes(model)[3]["inputs"][1]["arg"] = {"as_operator": "torch.os.system"}

    with pytest.raises(FormatError):
        load_program(edited(change))
    assert not bomb.went_off


@pytest.mark.parametrize(
    "name",
    [
        "data/constants/custom_obj_0",
        "data/constants/opaque_obj_0",
        "data/constants/pickled",
        "data/weights/weight_0.pkl",
        "extra/code.py",
        "data/aotinductor/model/model.so",
        "models/other.json",
        "../models/model.json",
        "data/sample_inputs/other.pt",
    ],
)
def test_a_record_that_a_network_does_not_need_is_refused_and_not_run(edited, bomb, name):
    with pytest.raises(FormatError, match="refused"):
        load_program(edited(records={name: pickle.dumps(bomb)}))
    assert not bomb.went_off


def config(edited, change, **records):
    """A program whose weights' config is changed."""
    with zipfile.ZipFile(edited()) as archive:
        content = json.loads(archive.read("net/data/weights/model_weights_config.json"))
    change(content["config"])
    return edited(
        records={
            "data/weights/model_weights_config.json": json.dumps(content),
            **{f"data/weights/{k}": v for k, v in records.items()},
        }
    )


@pytest.mark.usefixtures("only_new")
def test_pickled_weights_are_refused_and_not_run(edited, bomb):
    buffer = io.BytesIO()
    torch.save({"x": bomb}, buffer)
    path = config(edited, lambda c: c["conv.weight"].update(use_pickle=True), weight_0=buffer.getvalue())
    with pytest.raises(FormatError, match="pickled"):
        load_program(path)
    assert not bomb.went_off


@pytest.mark.parametrize("place", ["../../secret", "custom_obj_0", "weight_0/../x", "weight_0\n"])
@pytest.mark.usefixtures("only_new")
def test_weights_from_elsewhere_are_refused(edited, place):
    with pytest.raises(FormatError):
        load_program(config(edited, lambda c: c["conv.weight"].update(path_name=place)))


@pytest.mark.usefixtures("only_old")
@pytest.mark.parametrize("part", ["state_dict", "constants"])
@pytest.mark.parametrize("kind", ["code", "a pickle", "no tensors", "a list"])
def test_old_weights_that_are_more_than_tensors_are_refused_and_not_run(edited, bomb, part, kind):
    buffer = io.BytesIO()
    tensors = {"code": {"x": bomb}, "no tensors": {"x": "text"}, "a list": [torch.zeros(1)]}
    torch.save(tensors[kind], buffer) if kind in tensors else pickle.dump(bomb, buffer)
    with pytest.raises(FormatError, match=f"serialized_{part}"):
        load_program(edited(records={f"serialized_{part}.pt": buffer.getvalue()}))
    assert not bomb.went_off


def test_a_program_of_a_torch_that_this_one_cannot_read_says_whose_it_is(edited):
    def change(model):
        model["torch_version"] = "9.8.7"
        model["schema_version"]["major"] = 99

    wanted = r"torch \S+ could not load this program, which torch 9\.8\.7 exported: .*; export it with .*, by elbocli\.export"
    with pytest.raises(FormatError, match=wanted):
        load_program(edited(change))


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_code_in_the_sample_inputs_is_refused_and_not_run(edited, bomb, kind):
    buffer = io.BytesIO()
    torch.save(((bomb,), {}), buffer) if kind == "torch" else pickle.dump(bomb, buffer)
    with pytest.raises(FormatError, match=r"(model|inputs)\.pt"):
        load_program(edited(records={"data/sample_inputs/model.pt": buffer.getvalue()}))
    assert not bomb.went_off


@pytest.mark.parametrize(
    "name", ["x = __import__('os').system('id')", "x\nimport os", "x; y", "images), __import__('os'", "a b"]
)
def test_a_name_that_is_code_is_refused(edited, name):
    def change(model):
        nodes(model)[1]["name"] = name
        nodes(model)[1]["outputs"][0]["as_tensor"]["name"] = name

    with pytest.raises(FormatError, match="is not a name"):
        load_program(edited(change))


def test_arguments_of_a_type_of_their_own_are_refused(edited):
    def change(model):
        entry = model["graph_module"]["module_call_graph"][0]["signature"]
        tree = json.loads(entry["in_spec"])
        tree[1]["type"] = "os.system"
        entry["in_spec"] = json.dumps(tree)

    with pytest.raises(FormatError, match=r"os\.system"):
        load_program(edited(change))


def test_an_expression_that_takes_for_ever_to_check_is_refused_at_once(edited, within):
    path = edited(lambda model: size(model, "1" * 60 + "!"))
    with within(3), pytest.raises(FormatError, match="refused"):
        load_program(path)


def test_an_expression_that_takes_for_ever_to_evaluate_is_refused(edited, python):
    path = edited(lambda model: size(model, "Pow(Integer(9), Pow(Integer(9), Integer(9)))"))
    code = (
        "import sys\nfrom pathlib import Path\nfrom elbocli.errors import FormatError\nfrom elbocli.files.pt2_check import load_program\n"
        "try:\n    load_program(Path(sys.argv[1]))\nexcept FormatError:\n    print('refused')\n"
    )
    assert python(code, path, timeout=10) == "refused\n"


# Files that are no programs


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x05\x06" + bytes(18), b"PK\x03\x04" + bytes(100)])
def test_what_is_no_program_is_refused(tmp_path, content):
    path = tmp_path / "x.pt2"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"x\.pt2"):
        load_program(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "gone.pt2", tmp_path):
        with pytest.raises(FormatError, match=r"not a torch\.export program"):
            load_program(path)


def test_a_program_cut_short_is_refused(good, tmp_path):
    whole = good.read_bytes()
    path = tmp_path / "x.pt2"
    for part in (0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(FormatError, match=r"x\.pt2"):
            load_program(path)


def test_a_damaged_program_is_refused(good, tmp_path):
    whole = bytearray(good.read_bytes())
    at = whole.index(b'"graph_module"')
    whole[at : at + 4] = b"\0\0\0\0"
    (tmp_path / "x.pt2").write_bytes(whole)
    with pytest.raises(FormatError, match=r"x\.pt2"):
        load_program(tmp_path / "x.pt2")


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "{",
        "null",
        '{"graph_module": []}',
        '{"graph_module": {"metadata": {}, "graph": {"nodes": []}}}',
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_a_model_of_another_shape_is_refused(edited, text):
    with pytest.raises(FormatError, match=r"bad\.pt2"):
        load_program(edited(records={"models/model.json": text}))


@pytest.mark.usefixtures("only_new")
def test_a_weight_of_the_wrong_size_is_refused(edited):
    with pytest.raises(FormatError, match=r"bad\.pt2"):
        load_program(edited(records={"data/weights/weight_0": bytes(4)}))


def test_a_network_saved_by_torch_save_is_refused_and_not_run(tmp_path, bomb):
    path = tmp_path / "x.pt2"
    torch.save({"net": bomb}, path)
    with pytest.raises(FormatError, match="refused"):
        load_program(path)
    assert not bomb.went_off
