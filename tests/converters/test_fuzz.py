# SPDX-License-Identifier: Apache-2.0
"""A small campaign of the fuzzer with a fixed seed; the fuzzer itself, shown commands that break every rule; and
what it has found, one test each.
"""

import json
import os
import re
import shutil
import textwrap
import zipfile
from pathlib import Path

import pytest

from converters import ConversionError, load
from converters.containers.target import parse_size
from converters.errors import printable
from converters.inspect_checkpoint import main as inspect
from converters.latte_converter import main
from converters.layouts.base import coerce
from converters.output import writing_folder
from converters.stream import MAX_JSON
from tests.converters import fuzz
from tests.converters.fuzz_cases import (
    COMMANDS,
    INSPECT,
    KINDS,
    PROCESSES,
    Case,
    clear,
    make_case,
    safetensors_parts,
)
from tests.converters.fuzz_files import (
    Tensor,
    entries,
    header_bytes,
    load_seeds,
    number,
    safetensors_bytes,
    state_program,
    store,
    torch_zip,
    view,
    weights_of,
    word,
    zip_bytes,
)

CASES, REAL = 400, 6


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    return load_seeds(tmp_path_factory.mktemp("seeds"))


@pytest.fixture(scope="module")
def by_name(seeds):
    return {seed.name: seed for seed in seeds}


@pytest.fixture(scope="module")
def campaign(tmp_path_factory, seeds):
    place = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path_factory.getbasetemp()
    yard = place / f"fuzz-test-{os.getpid()}" / "yard"
    yard.mkdir(parents=True)
    running = fuzz.Campaign(yard, seeds)
    with running.worker:
        yield running
    clear(yard.parent)


# ------------------------------------------------------------------------------------------------ the campaign


def test_no_rule_is_broken(campaign):
    summary = fuzz.summary_of(0, range(CASES), campaign, print)
    report = fuzz.table(summary)
    assert not summary["violations"], report
    outcomes = {
        word: sum(n for key, n in summary["counts"].items() if key.endswith(f"/{word}"))
        for word in fuzz.OUTCOMES
    }
    assert sum(outcomes.values()) == CASES and outcomes["died"] == 0, report
    assert outcomes["converted"] > CASES // 12 and outcomes["refused"] > CASES // 3, (
        report
    )  # both ways are walked
    assert {key.partition("/")[0] for key in summary["counts"]} == set(KINDS), report
    assert summary["starts"] == 1, "one worker served all cases"


def test_no_rule_is_broken_by_real_processes(campaign):
    summary = fuzz.summary_of(0, range(PROCESSES, PROCESSES + REAL), campaign, print)
    assert not summary["violations"] and sum(summary["counts"].values()) == REAL, fuzz.table(summary)


def test_two_numbers_make_a_case(campaign, seeds):
    for index in range(40):
        one = make_case(7, index, campaign.yard, seeds)
        words, before = (one.what, one.script, one.arguments, one.must), fuzz.snapshot(one.folder)
        two = make_case(7, index, campaign.yard, seeds)
        assert words == (two.what, two.script, two.arguments, two.must)
        after = fuzz.snapshot(two.folder)
        assert before.keys() == after.keys()
        changed = fuzz.changes(before, after)  # a large file is known by its time alone
        changed = [name for name in changed if os.path.getsize(two.folder / name) < 64 << 20]
        assert not changed or one.kind == "torch_things", one.what  # keys in torch's old files are addresses


def test_seeds_are_read_by_others_and_no_two_tensors_are_alike(seeds):
    assert len({seed.name for seed in seeds}) == len(seeds) > 30
    assert {seed.container for seed in seeds} == {"zip", "legacy", "safetensors", "ckpt", "shards"}
    for seed in seeds:
        tensors = seed.tensors()
        tied = {"shared.weight", "encoder.embed_tokens.weight", "shared.embedding_table"}
        tied |= {"encoder.embed_tokens.embedding_table"}
        raws = [tensor.raw for name, tensor in tensors.items() if name not in tied]
        assert len(set(raws)) == len(raws) and len(seed.spots("ema")) == len(tensors), seed.name


# ---------------------------------------------------------------------------------- the rules, broken one by one

REALLY = "from converters.latte_converter import main as really"
LATTE = "latte-zip"
# rule, what it has to say, the command's body, and what is different about the case
BROKEN = {
    "another exit code": ("ends", "exit code 3", "return 3", {}),
    "an exception": ("ends", "traceback: RuntimeError: oh", "raise RuntimeError('oh')", {}),
    "sys.exit": ("ends", "exit code 1", "sys.exit('error: oh')", {}),
    "a crash": ("ends", "crash: the worker ended with code -11", "os.kill(os.getpid(), 11)", {}),
    "a hang": ("ends", "hang: the alarm rang", "while True: pass", {"hang": 1}),
    "a hang in a try": (
        "ends",
        "hang: the alarm rang",
        """
        while True:
            try: time.sleep(9)
            except Exception: pass
        """,
        {"hang": 1},
    ),
    "a deaf hang": (
        "ends",
        "hang: the alarm went unheard",
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM]); time.sleep(60)",
        {"hang": 1},
    ),
    "no error": ("speaks", "not one line of error: ''", "return 2", {}),
    "two lines": ("speaks", "not one line", "print('error: a\\nb', file=sys.stderr); return 2", {}),
    "a long error": ("speaks", "error of 300", "print('error: ' + 'x' * 30000, file=sys.stderr); return 2", {}),
    "a warning": ("speaks", "on stderr", "print('careful', file=sys.stderr); return really(arguments)", {}),
    "a warning below Python": ("speaks", "on stderr: 'careful", "os.write(2, b'careful'); return really(arguments)",
                               {}),
    "steering the terminal": ("speaks", "stdout holds '\\x1b'", "print('\\x1b[2J'); return really(arguments)", {}),
    "a leftover": ("cleans_up", "left behind by a command that failed: out/.x.tmp",
                   "open('out/.x.tmp', 'w'); return 2", {}),
    "the old target": ("cleans_up", "changed or removed by a command that failed: out/x.pt",
                       "os.truncate('out/x.pt', 1); return 2",
                       {"old": True}),
    "the old target's rights": ("cleans_up", "changed or removed", "os.chmod('out/x.pt', 0); return 2", {"old": True}),
    "a look that writes": ("cleans_up", "only looks: out/log", "open('out/log', 'w'); return 0", {"inspects": True}),
    "a stranger's file": ("cleans_up", "changed out/y, which is no part",
                          "open('out/y', 'w'); return really(arguments)", {}),
    "the source": ("cleans_up", "source was changed",
                   "code = really(arguments); open('in/training.pt', 'ab').write(b'x'); return code",
                   {}),
    "no --force": ("cleans_up", "without --force, out/x.pt", "return really([*arguments, '--force'])", {"old": True}),
    "a write outside": ("stays_inside", "outside: open '../hit'", "open('../hit', 'w'); return 2", {}),
    "a write through a link": ("stays_inside", "outside: open",
                               "os.symlink('../hit', 'l'); open('l', 'w'); return 2", {}),
    "a folder outside": ("stays_inside", "outside of the case's folder: hit", "os.mkdir('../hit'); return 2", {}),
    "a removal outside": ("stays_inside", "outside: os.remove", "os.remove('../neighbour.safetensors'); return 2", {}),
    "a move outside": ("stays_inside", "outside: os.rename", "os.rename('in', '../hit'); return 2", {}),
    "temporary files": ("stays_inside", "tmp/", "import tempfile; tempfile.mkstemp(); return 2", {}),
    "the canary": ("runs_nothing", "canary was hit: canary/hit", "open('../canary/hit', 'w'); return 2", {}),
    "os.system": ("runs_nothing", "executed: os.system", "os.system('true'); return 2", {}),
    "a process": ("runs_nothing", "executed: subprocess.Popen", "subprocess.run(['true']); return 2", {}),
    "eval": ("runs_nothing", "executed: exec of '<string>'", "eval('1 + 1'); return 2", {}),
    "a pickle": ("runs_nothing", "executed: pickle.find_class", "pickle.loads(b'cos\\ngetpid\\n.'); return 2", {}),
    "an import": ("runs_nothing", "executed: import spam",
                  "open('in/spam.py', 'w').close(); sys.path.insert(0, 'in'); import spam; return 2", {}),
    "a connection": ("runs_nothing", "executed: socket.", "socket.socket(); return 2", {}),
    "much memory": ("is_modest", "MiB for", "x = b'x' * (600 << 20); return 2", {}),
    "too much memory": ("is_modest", "memory: error: not enough", "return guarded(lambda: bytearray(9 << 30))", {}),
    "much time": ("is_modest", "slow: 0.", "t = time.process_time()\nwhile time.process_time() < t + 0.3: pass",
                  {"cpu": 0.2}),
    "an open file": ("is_modest", "leak: 1 open files", "kept.append(open('in/training.pt', 'rb')); return 2", {}),
    "a thread": ("is_modest", "leak: 1 threads",
                 "threading.Thread(target=time.sleep, args=(1,)).start(); return 2", {}),
    "danger taken": ("is_right", "accepted what has to be refused", "return really(arguments)", {"must": "refuse"}),
    "a whole file refused": ("is_right", "refused what is whole: error: no",
                             "print('error: no', file=sys.stderr); return 2",
                             {"must": "convert"}),
    "no target": ("writes_what_it_read", "success without a target", "return 0", {}),
    "half a target": ("writes_what_it_read", "own target cannot be opened",
                      "code = really(arguments); os.truncate('out/x.pt', 9999)", {}),
    "a target for us alone": ("writes_what_it_read", "others cannot read the target", """
        code = really(arguments)
        raw = open('out/x.safetensors', 'rb').read().replace(b'"training.pt', b'"\\\\ud800ng.pt')
        open('out/x.safetensors', 'wb').write(raw)
        """, {"target": "out/x.safetensors"}),
    "another bit": ("writes_what_it_read", "x_embedder.proj.bias holds other bits", """
        code = really(arguments)
        raw = bytearray(open('out/x.ckpt', 'rb').read())
        raw[raw.index(b'x_embedder.proj.bias') + 50] ^= 1
        open('out/x.ckpt', 'wb').write(raw)
        """, {"target": "out/x.ckpt"}),
    "another cast": ("writes_what_it_read", "holds other bits",
                     "return really([a.replace('bf16', 'fp16') for a in arguments])",
                     {"dtype": "bf16"}),
    "a lost tensor": ("writes_what_it_read", "lost without a word: 'caption_projection.y_embedding'", """
        code = really(arguments)
        raw = open('out/x.safetensors', 'rb').read()
        length = int.from_bytes(raw[:8], 'little')
        header = json.loads(raw[8 : 8 + length])
        first, _ = header.pop('caption_projection.y_embedding')['data_offsets']  # the last one
        text = json.dumps(header).encode()
        open('out/x.safetensors', 'wb').write(len(text).to_bytes(8, 'little') + text + raw[8 + length :][:first])
        """, {"seed": "t2v-official", "target": "out/x.safetensors"}),
    "other fillings": ("writes_what_it_read", "y_embedding is filled with other numbers", """
        code = really(arguments)
        raw = bytearray(open('out/x.ckpt', 'rb').read())
        raw[raw.index(b'caption_projection.y_embedding') + 60] ^= 1
        open('out/x.ckpt', 'wb').write(raw)
        """, {"seed": "t2v-folder", "target": "out/x.ckpt", "to": "official-t2v"}),
    "another configuration": ("writes_what_it_read", "the target says", """
        code = really(arguments)
        text = open('out/x.pt.json').read().replace('"num_heads": 3', '"num_heads": 4')
        open('out/x.pt.json', 'w').write(text)
        """, {}),
    "a configuration ignored": ("writes_what_it_read", "depth is '2', the configuration said '4'",
                                "return really(arguments)",
                                {"given": {"depth": 4}}),
}  # fmt: skip


def stub(path: Path, body: str) -> str:
    """A command whose `main` has this body."""
    lines = textwrap.dedent(body).strip().replace("\n", "\n    ")
    imports = "import json, os, pickle, signal, socket, subprocess, sys, threading, time"
    guard = "from converters.command import guarded"
    ending = 'if __name__ == "__main__": sys.exit(main(sys.argv[1:]))'
    imports += f"\nsys.path.insert(0, {str(fuzz.ROOT)!r})"
    text = f"{imports}\n{REALLY}\n{guard}\nkept = []\ndef main(arguments):\n    {lines}\n    return 0\n{ending}\n"
    path.write_text(text)
    return str(path)


def broken_case(campaign, by_name, script: str, index: int = 0, **about) -> Case:
    """A clean case for a command that is not."""
    clear(campaign.yard / "case")
    (campaign.yard / "case" / "out").mkdir(parents=True)
    case = Case(0, index, campaign.yard / "case", campaign.yard / "canary", campaign.seeds, kind="stub")
    case.base, case.script = by_name[about.get("seed", LATTE)], script
    shutil.copytree(case.base.folder, case.folder / "in")
    case.source = os.path.normpath(f"in/{case.base.source}")
    case.settings = list(case.base.settings)
    case.target = about.get("target", "out/x.pt")
    for name in ("to", "dtype", "must", "given"):
        setattr(case, name, about.get(name, getattr(case, name)))
    if about.get("old"):
        (case.folder / case.target).write_bytes(b"old")
    return case


@pytest.mark.parametrize("name", BROKEN)
def test_every_rule_can_be_broken(campaign, by_name, tmp_path, monkeypatch, name):
    rule, says, body, about = BROKEN[name]
    case = broken_case(campaign, by_name, stub(tmp_path / "stub.py", body), **about)
    if about.get("inspects"):
        monkeypatch.setattr(Case, "inspects", True)
    monkeypatch.setattr(campaign.worker, "hang", about.get("hang", fuzz.HANG))
    monkeypatch.setattr(fuzz, "CPU_LIMIT", about.get("cpu", fuzz.CPU_LIMIT))
    trial = campaign.run(case)
    wrong = fuzz.judge(trial)
    assert any(line.startswith(f"{rule}: ") and says in line for line in wrong), (wrong, trial.outcome)
    assert not os.listdir(campaign.yard / "canary") and not (campaign.yard / "hit").exists()
    assert (campaign.yard / "neighbour.safetensors").read_bytes() == b"not yours"


def test_a_broken_promise(campaign, by_name, tmp_path, monkeypatch):
    refusing = stub(tmp_path / "stub.py", "print('error: no', file=sys.stderr); return 2")
    monkeypatch.setitem(fuzz.COMMANDS, "latte", refusing)
    wrong = fuzz.judge(campaign.run(broken_case(campaign, by_name, INSPECT)))
    assert wrong == ["is_right: inspect said that it fits, the converter said error: no\n"]


def test_every_rule_is_shown_to_fire():
    assert {rule for rule, *_ in BROKEN.values()} == set(fuzz.RULES)


def test_an_honest_command_breaks_none(campaign, by_name):
    for name, script in ((LATTE, COMMANDS["latte"]), ("t5-bin", COMMANDS["t5"]), (LATTE, INSPECT)):
        trial = campaign.run(broken_case(campaign, by_name, script, seed=name, must="convert"))
        assert fuzz.judge(trial) == []


@pytest.mark.parametrize(
    ("rule", "says", "body"),
    [
        ("ends", "exit code 3", "return 3"),
        ("ends", "traceback: RuntimeError: oh", "raise RuntimeError('oh')"),
        ("ends", "crash: signal 11", "os.kill(os.getpid(), 11)"),
        ("cleans_up", "left behind", "open('out/.x.tmp', 'w'); print('error: x', file=sys.stderr); return 2"),
        ("runs_nothing", "canary was hit", "open('../canary/hit', 'w'); return 2"),
        ("is_modest", "memory: ", "x = b'x' * (600 << 20); time.sleep(0.1); return 2"),
    ],
)
def test_rules_see_real_processes(campaign, by_name, tmp_path, rule, says, body):
    case = broken_case(campaign, by_name, stub(tmp_path / "stub.py", body), index=PROCESSES)
    wrong = fuzz.judge(campaign.run(case))
    assert any(line.startswith(f"{rule}: ") and says in line for line in wrong), wrong


def test_a_real_process_that_hangs_is_killed(campaign, by_name, tmp_path):
    case = broken_case(campaign, by_name, stub(tmp_path / "stub.py", "time.sleep(60)"), index=PROCESSES)
    assert fuzz.run_process(case, hang=1).died == "hang: it had to be killed"


def test_command_line(tmp_path, seeds, capsys):
    place = str(seeds[0].folder.parent)
    options = ["--cases=3", "--processes=0", "--seed=0", f"--seeds={place}", f"--folder={tmp_path}"]
    assert fuzz.main([*options, f"--report={tmp_path / 'report.json'}"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^all( +\d+){6} +3$", printed, re.M) and "violations  0" in printed
    assert sum(json.loads((tmp_path / "report.json").read_text())["counts"].values()) == 3
    assert (
        fuzz.main([f"--seeds={place}", f"--folder={tmp_path}", "--replay=0:0", f"--keep={tmp_path / 'kept'}"])
        == 0
    )
    assert "mutation  " in capsys.readouterr().out and (tmp_path / "kept" / "in").is_dir()
    assert sorted(os.listdir(tmp_path)) == ["kept", "report.json"]


# ---------------------------------------------------------------------------------------- what the fuzzer found


@pytest.fixture
def latte(by_name, tmp_path):
    """A whole checkpoint in a folder of its own."""
    return Path(shutil.copy(by_name["latte-half"].folder / "half.pt", tmp_path / "half.pt"))


def convert_latte(source: Path, target: Path, *options: str) -> int:
    return main([f"--source={source}", f"--target={target}", "--set", "num_heads=3", *options])


def test_an_error_stays_short_when_its_letters_are_spelt_out():
    assert len(printable("\x1b" * 30_000)) < fuzz.MESSAGE and printable("a\x1b\ud800") == "a\\x1b\\ud800"


def test_words_of_the_file_do_not_steer_the_terminal(by_name, tmp_path, capsys):
    state = list(by_name["latte-zip"].tensors().items())
    program, storages = state_program(state)
    odd = entries([(word("ema"), program), (word("\x1b[2J"), number(1))])
    (tmp_path / "a.pt").write_bytes(torch_zip(odd, storages))
    assert convert_latte(tmp_path / "a.pt", tmp_path / "b.pt") == 0
    assert "took 'ema', left \\x1b[2J\n" in capsys.readouterr().out


def test_a_file_name_in_an_error_of_the_system_is_spelt_out_and_cut(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert convert_latte(Path("\x1b" * 20_000), Path("a.pt")) == 2
    printed = capsys.readouterr().err
    assert re.fullmatch(r"error: [ -~]+\n", printed) and len(printed) < fuzz.MESSAGE


@pytest.mark.parametrize("name", ["x", "blocks.0.attn.qkv.bias", "caption_projection.y_embedding"])
def test_extras_that_belong_to_another_file_are_refused(latte, name):
    table = Tensor("F32", (120, 12), bytes(120 * 12 * 4))
    latte.with_name("half.pt.extras.safetensors").write_bytes(safetensors_bytes([(name, table)]))
    with pytest.raises(
        ConversionError, match=r"half.pt.extras.safetensors does not belong to .*half.pt; got unknown"
    ):
        load(latte, overrides={"num_heads": 3})


@pytest.mark.parametrize("beside", ["x.pt.json", "x.pt.extras.safetensors"])
def test_what_stands_where_side_files_go(latte, tmp_path, beside):
    """A folder there is refused before the weights take their name; a file is replaced with --force alone."""
    (tmp_path / beside).mkdir()
    for options in ((), ("--force",)):
        assert convert_latte(latte, tmp_path / "x.pt", *options) == 2
    assert sorted(os.listdir(tmp_path)) == ["half.pt", beside]
    (tmp_path / beside).rmdir()
    (tmp_path / beside).write_text("mine")
    assert convert_latte(latte, tmp_path / "x.pt") == 2 and (tmp_path / beside).read_text() == "mine"
    assert convert_latte(latte, tmp_path / "x.pt", "--force") == 0


@pytest.mark.parametrize("beside", [".json", ".extras.safetensors"])
def test_the_source_is_safe_under_the_name_of_a_side_file(latte, tmp_path, beside):
    source = latte.rename(tmp_path / f"x.safetensors{beside}")
    before = source.read_bytes()
    assert convert_latte(source, tmp_path / "x.safetensors", "--force") == 2
    assert os.listdir(tmp_path) == [source.name] and source.read_bytes() == before


def test_links_to_folders(by_name, tmp_path):
    shutil.copytree(by_name["t2v-folder"].folder, tmp_path / "in")
    (tmp_path / "alias").symlink_to("in")
    before = fuzz.snapshot(tmp_path)
    for source, target in (("in", "alias"), ("alias", "in"), ("alias", "alias"), ("in", "alias/../in")):
        assert main([f"--source={tmp_path / source}", f"--target={tmp_path / target}", "--force"]) == 2
    assert fuzz.snapshot(tmp_path) == before
    (tmp_path / "old").mkdir()
    (tmp_path / "link").symlink_to("old")
    assert main([f"--source={tmp_path / 'in'}", f"--target={tmp_path / 'link'}", "--force"]) == 0
    assert sorted(os.listdir(tmp_path)) == ["alias", "in", "link", "old"]
    assert (tmp_path / "link" / "config.json").is_file()


def test_leftovers_of_others_stay(tmp_path):
    mine, other = (f".{name}.unfinished-abcdefgh.tmp" for name in ("*", "y"))
    for name in (mine, other):
        (tmp_path / name).mkdir()
    with writing_folder(tmp_path / "*"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["*", other]
    with writing_folder(tmp_path / "**"):  # which glob does not take
        pass


def test_a_source_whose_name_is_no_text(latte, tmp_path):
    odd, target = latte.rename(tmp_path / "\udcff.pt"), tmp_path / "x.safetensors"
    assert convert_latte(odd, target) == 0
    assert weights_of(view(target), "ema").keys() == load(target).tensors.keys()


@pytest.mark.parametrize("size", ["9" * 400, "9" * 300 + "." + "9" * 50, "99999999999GB", "0.5", "0"])
def test_sizes_that_are_none(size):
    with pytest.raises(ConversionError, match="--shard-size is malformed"):
        parse_size(size)


@pytest.mark.parametrize(
    ("kind", "value"), [("fraction", 10**400), ("count", 1 << 31), ("counts", [10**4000])]
)
def test_numbers_that_fit_nothing(kind, value):
    with pytest.raises(ConversionError, match="has a wrong value"):
        coerce("key", kind, value, "config.json")


@pytest.mark.parametrize("text", ['{"extras": [[3]]}', '{"extras": true}', '{"extras": {}}'])
def test_extras_of_another_type(latte, text):
    latte.with_name("config.json").write_text(text)
    with pytest.raises(ConversionError, match="extras has a wrong value"):
        load(latte, overrides={"num_heads": 3})


def test_an_option_that_argparse_empties(latte, tmp_path, capsys):
    assert convert_latte(latte, tmp_path / "x.pt", "--to=--") == 2
    assert capsys.readouterr().err == "error: argument --to: expected one argument; remedy: see --help\n"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"config": "\ud800"}, "is not valid JSON"),
        ({"config": '{"patch_size": ' + "1" * 4000 + "}"}, "patch_size has a wrong value"),
        ({"layout": "dit-imagenet"}, "this package writes no dit-imagenet"),
    ],
)
def test_what_metadata_may_not_say(by_name, tmp_path, change, says):
    source = by_name["latte-ours"].folder / "ours.safetensors"
    header, body = safetensors_parts(source)
    header["__metadata__"] |= change
    (tmp_path / "a.safetensors").write_bytes(header_bytes(json.dumps(header)) + body)
    with pytest.raises(ConversionError, match=says):
        load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["config.json", "a.index.json"])
def test_json_that_is_no_configuration_is_not_read(latte, name):
    latte.with_name(name).touch()
    os.truncate(latte.with_name(name), MAX_JSON + 1)
    with pytest.raises(ConversionError, match="is no configuration and no index"):
        load(latte if name == "config.json" else latte.with_name(name), overrides={"num_heads": 3})


@pytest.mark.parametrize("container", ["safetensors", "ckpt", "zip", "legacy"])
@pytest.mark.parametrize("shape", [(1,) * 33, (0, 1 << 62), (0, 1 << 40, 1 << 40)])
def test_shapes_that_numpy_has_not(tmp_path, capsys, container, shape):
    path = tmp_path / f"a.{container}"
    path.write_bytes(store(container, [("x", Tensor("F32", shape, bytes(4 * (0 not in shape))))]))
    assert inspect([f"--source={path}", "--hash"]) == 2
    assert re.fullmatch(r"error: [^\n]+\n", capsys.readouterr().err)


def test_an_archive_has_neither_gaps_nor_a_second_one_before_it(latte, tmp_path):
    raw = latte.read_bytes()
    (tmp_path / "two.pt").write_bytes(zip_bytes([("a/data.pkl", b"N.")]) + raw)
    with pytest.raises(ConversionError, match="damaged zip file; got something before its first entry"):
        load(tmp_path / "two.pt", overrides={"num_heads": 3})
    with zipfile.ZipFile(latte) as archive:
        place = next(info.header_offset for info in archive.infolist() if info.filename.endswith("/data/3"))
    for change in (-4, 4):  # of the length of the padding, which no checksum guards: numbers would be shifted
        shifted = bytearray(raw)
        padding = int.from_bytes(raw[place + 28 : place + 30], "little") + change
        shifted[place + 28 : place + 30] = padding.to_bytes(2, "little")
        (tmp_path / "shifted.pt").write_bytes(shifted)
        with pytest.raises(ConversionError, match=r"damaged zip file; got half/data/3 up to byte \d+"):
            load(tmp_path / "shifted.pt", overrides={"num_heads": 3})


def test_a_storage_longer_than_its_tensors_say(by_name, tmp_path):
    program, storages = state_program(list(by_name["latte-half"].tensors().items()))
    storages["3"] = storages["3"][0], storages["3"][1] + bytes(4)
    (tmp_path / "a.pt").write_bytes(torch_zip(program, storages))
    with pytest.raises(ConversionError, match="entry data/3 is too long"):
        load(tmp_path / "a.pt", overrides={"num_heads": 3})
