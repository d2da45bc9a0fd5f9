"""Remove each protection in a copy of the tree, and see that its test fails.

``python tests/removals.py`` takes some minutes; names as arguments choose some. A protection whose
test still passes without it, or whose text is no longer found, is reported, and the exit code is 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Removal:
    """A protection.

    Args:
        file: where it stands.
        old: its text, once in the file.
        new: what stands there without it.
        test: arguments of pytest for what has to fail.
    """

    file: str
    old: str
    new: str
    test: str


FAULTS, RACE = "tests/faults/test_faults.py", "tests/faults/test_race.py"
ANY, NUMBERS = "tests/properties/test_any_graph.py", "tests/properties/test_numbers.py"
STATES, EDGES = "tests/samplers/test_checkpoint.py", "tests/cli/test_edges.py"
FROZEN = "tests/samplers/test_frozen.py"
REPORT, SUPPLY = "tests/report/test_report.py", "tests/test_supply.py"

REMOVALS = {
    "filter of known edges": Removal(
        "dgl_dmns/core/pools.py",
        "barred[owner[hit], order[place[hit]] % size] = True",
        "pass",
        f"{ANY} -k test_any_graph",
    ),
    "redraws of known edges": Removal(
        "dgl_dmns/core/known.py",
        "bad = self.contains(rows, drawn).nonzero(as_tuple=True)",
        "bad = (rows[:, :0] < 0).nonzero(as_tuple=True)",
        f"{ANY} -k uniform",
    ),
    "fallback to the query itself": Removal(
        "dgl_dmns/core/known.py",
        "return torch.full((count,), node, dtype=torch.int64, device=device)",
        "return torch.zeros((count,), dtype=torch.int64, device=device)",
        "tests/samplers/test_conformance.py -k 'exactly_k and uniform-complete'",
    ),
    "order of the negatives": Removal(
        "dgl_dmns/samplers/base.py",
        "return src.repeat_interleave(chosen.shape[1]), chosen.flatten()",
        "return src.repeat(chosen.shape[1]), chosen.flatten()",
        f"{ANY} -k uniform",
    ),
    "ids of the graph's type": Removal(
        "dgl_dmns/samplers/base.py",
        "return src.to(eids.device, eids.dtype), dst.to(eids.device, eids.dtype)",
        "return src, dst",
        f"{ANY} -k uniform",
    ),
    "noise of the draws": Removal(
        "dgl_dmns/core/choice.py",
        "place = torch.searchsorted(total, share.mul_(total[:, -1:]), right=True)",
        "place = torch.searchsorted(total, share.pow_(1.2).mul_(total[:, -1:]), right=True)",
        f"{ANY} -k follow_the_rules",
    ),
    "powers of two before squares": Removal(
        "dgl_dmns/core/space.py",
        "normalize(torch.ldexp(h, -exponent), dim=1, eps=1e-12)",
        "normalize(h, dim=1, eps=1e-12)",
        f"{NUMBERS} -k compact_space",
    ),
    "scores that are not finite": Removal(
        "dgl_dmns/core/pools.py",
        "if not bool((logits.amax(-1) < math.inf).all()):",
        "if False:",
        f"{NUMBERS} -k 'range_of_numbers or gives_nan'",
    ),
    "Gaussians that come apart": Removal(
        "dgl_dmns/core/pools.py",
        "if not bool(stable.all()):",
        "if False:",
        f"{NUMBERS} -k comes_apart",
    ),
    "latents that come apart": Removal(
        "dgl_dmns/core/nearest.py",
        "uniform[:, slot] |= lost",
        "pass",
        f"{NUMBERS} -k comes_apart",
    ),
    "fits taken back": Removal(
        "dgl_dmns/core/generator.py",
        "self.predictor.load_state_dict(before[0])",
        "pass",
        "tests/core/test_generator.py -k taken_back",
    ),
    "adversary taken back": Removal(
        "dgl_dmns/samplers/adversarial.py",
        "self.load_state_dict(before)",
        "pass",
        f"{NUMBERS} -k taken_back",
    ),
    "single precision": Removal(
        "dgl_dmns/samplers/encoder.py",
        'h = h.detach().to("cpu", torch.float32, copy=copy)',
        'h = h.detach().to("cpu", copy=copy)',
        f"{NUMBERS} -k any_size",
    ),
    "NaN in embeddings": Removal(
        "dgl_dmns/samplers/encoder.py",
        "bad = sum(int((~part.isfinite()).any(dim=1).sum()) for part in h.split(_ROWS))",
        "bad = 0",
        "tests/samplers/test_conformance.py -k 'that_fails_leaves and dmns'",
    ),
    "a copy of the embeddings": Removal(
        "dgl_dmns/samplers/refreshing.py",
        "h = self._embeddings(embeddings, observed, copy=True)",
        "h = self._embeddings(embeddings, observed)",
        f"{FROZEN} -k own_weights",
    ),
    "a scorer in eval mode": Removal(
        "dgl_dmns/samplers/relation.py",
        "copied: nn.Module = copy.deepcopy(scorer).eval()",
        "copied: nn.Module = scorer",
        f"{FROZEN} -k eval_mode",
    ),
    "full precision in autocast": Removal(
        "dgl_dmns/core/modes.py",
        'return _under(lambda: torch.autocast("cpu", enabled=False))(function)',
        "return function",
        f"{FROZEN} -k autocast",
    ),
    "the dtype of the predictor": Removal(
        "dgl_dmns/core/generator.py",
        "self.predictor = predictor.float()",
        "self.predictor = predictor",
        f"{NUMBERS} -k double_precision",
    ),
    "single precision of the space": Removal(
        "dgl_dmns/core/space.py",
        "torch.zeros(width, dtype=torch.float32)",
        "torch.zeros(width)",
        f"{NUMBERS} -k default_dtype",
    ),
    "shares of a curriculum in states": Removal(
        "dgl_dmns/core/generator.py",
        "self.levels = replace(self.levels, shares=tuple(shares))",
        "pass",
        f"{FROZEN} -k curriculum",
    ),
    "the budget of tables that grow": Removal(
        "dgl_dmns/samplers/stateful.py",
        "groups = groups_with_room(self.resources, self.settings.groups, g, numbers)",
        "groups = self.settings.groups",
        f"{FROZEN} -k budget",
    ),
    "a failed refresh is tried again": Removal(
        "dgl_dmns/samplers/refreshing.py",
        "cadence.done(self.refresh().seconds)\n            elif",
        "cadence.done(0.0)\n                self.refresh()\n            elif",
        "tests/samplers/test_conformance.py -k 'tried_again and dmns'",
    ),
    "the random state in checkpoints": Removal(
        "dgl_dmns/samplers/relation.py",
        'self.random.set_state(state["random"])',
        "pass",
        f"{FAULTS} -k 'same_bits and refresh'",
    ),
    "the whole file before its name": Removal(
        "dgl_dmns/checkpoint.py",
        'name = target.parent / f".{target.name}.{secrets.token_hex(8)}.part"\n    try:\n        '
        'with name.open("xb")',
        'name = target\n    try:\n        with name.open("wb")',
        f"{STATES} {FAULTS} -k 'killed_while or without_room'",
    ),
    "what killed writers left": Removal(
        "dgl_dmns/checkpoint.py",
        "    _remove_abandoned(target)\n",
        "",
        f"{STATES} -k old",
    ),
    "the checksum": Removal(
        "dgl_dmns/checkpoint.py",
        'if _digest(words["nesting"], found) != words["sha256"]:',
        "if False:",
        f"{STATES} -k packed_again",
    ),
    "no pickles": Removal(
        "dgl_dmns/archives.py",
        "allow_pickle=False",
        "allow_pickle=True",
        f"{STATES} {SUPPLY} -k code",
    ),
    "what a file unpacks to": Removal(
        "dgl_dmns/archives.py",
        "if unpacked > most:",
        "if False:",
        f"{STATES} -k unpacks",
    ),
    "tables in states": Removal(
        "dgl_dmns/samplers/relation.py",
        'self._check_table(state["table"])',
        "pass",
        f"{STATES} -k look_right",
    ),
    "limits of files": Removal(
        "dgl_dmns/cli/edges.py",
        "if size > LARGEST and",
        "if False and",
        f"{EDGES} -k limit",
    ),
    "limits of Parquet": Removal(
        "dgl_dmns/parquet.py",
        "if unpacked > MOST_BYTES or cells > MOST_CELLS:",
        "if False:",
        f"{EDGES} -k limit",
    ),
    "shapes that a file does not hold": Removal(
        "dgl_dmns/cli/edges.py",
        'np.lib.format.open_memmap(file, mode="r")',
        "np.load(file, allow_pickle=False)",
        f"{EDGES} -k made_to_harm",
    ),
    "ids that stay exact": Removal(
        "dgl_dmns/cli/edges.py",
        "| (column.abs() >= _EXACT)",
        "",
        f"{EDGES} -k errors_name_the_place",
    ),
    "columns in one piece": Removal(
        "dgl_dmns/cli/edges.py",
        ", low_memory=False",
        "",
        f"{EDGES} -k one_piece",
    ),
    "escaped text": Removal(
        "dgl_dmns/report/page.py",
        "<dt>{escape(str(name))}</dt><dd>{_number(value)}</dd>",
        "<dt>{name}</dt><dd>{_number(value)}</dd>",
        f"{REPORT} -k becomes_a_tag",
    ),
    "words that are no formulas": Removal(
        "dgl_dmns/report/pictures.py",
        '"text.parse_math": False',
        '"text.parse_math": True',
        f"{REPORT} -k formulas",
    ),
    "errors of loaders": Removal(
        "dgl_dmns/evaluate/files.py",
        "except Exception as error:",
        "except OSError as error:",
        "tests/test_fuzzing.py -k fixed",
    ),
    "look-ups of one version": Removal(
        "dgl_dmns/core/table.py",
        "            if self.version == version:\n                return ids.long()",
        "            return ids.long()",
        "tests/core/test_table.py -k overtake",
    ),
    "the hidden buffer": Removal(
        "dgl_dmns/core/table.py",
        "hidden = (self.version + 1) % 2",
        "hidden = self.version % 2",
        f"{RACE} {FAULTS} -k 'one_version or in_the_middle or runs_out'",
    ),
    "silence": Removal(
        "dgl_dmns/__init__.py",
        "from __future__ import annotations\n",
        "from __future__ import annotations\n\nimport socket\n\n"
        'socket.getaddrinfo("localhost", 80)\n',
        f"{SUPPLY} -k no_connection",
    ),
    "sharpness in a state": Removal(
        "dgl_dmns/samplers/relation.py",
        'self.sharpness = state["sharpness"]',
        "pass",
        "tests/samplers/test_sharp_scores.py -k state_keeps",
    ),
    "sharpness that never flattens": Removal(
        "dgl_dmns/core/sharpness.py",
        "return max(1.0, _least",
        "return max(1e-9, _least",
        "tests/core/test_sharpness.py -k sharp_enough",
    ),
    "bound of the sharpness": Removal(
        "dgl_dmns/core/sharpness.py",
        "return _STEEPEST / spread",
        "return 10 * _STEEPEST / spread",
        "tests/core/test_sharpness.py -k spread_bounds",
    ),
    "known edges in a shared pool": Removal(
        "dgl_dmns/core/shared_pool.py",
        "rows, columns = self.is_among(shared)",
        "rows, columns = row[:0], row[:0]",
        "tests/test_shared_softmax.py -k 'full_softmax or all_known'",
    ),
    "positives in a shared pool": Removal(
        "dgl_dmns/core/shared_pool.py",
        "row = (shared.nodes[column] == self.dst).nonzero().squeeze(1)",
        "row = column[:0]",
        "tests/test_shared_softmax.py -k no_negatives",
    ),
    "draws of a node that is drawn often": Removal(
        "dgl_dmns/core/shared_pool.py",
        "total = weight.new_zeros(len(nodes)).index_add_(0, column, weight)",
        "total = weight.new_zeros(len(nodes)).index_copy_(0, column, weight)",
        "tests/test_shared_softmax.py -k as_often",
    ),
    "own draws counted once beside a pool": Removal(
        "dgl_dmns/core/shared_pool.py",
        "Corrections(query, node, rest.log()), shift, column)",
        "Corrections(query[:0], node[:0], rest[:0]), shift, column)",
        "tests/test_shared_softmax.py -k unbiased",
    ),
    "weight of a part of the pool": Removal(
        "dgl_dmns/shared_softmax.py",
        "other - shared.shift.to(other),",
        "other,",
        "tests/test_shared_softmax.py -k unbiased",
    ),
    "exponents that count nothing": Removal(
        "dgl_dmns/core/pool_softmax.py",
        ".clamp_(min=_LOWEST)",
        ".clamp_(min=-0.5)",
        "tests/test_shared_softmax.py -k gradients_made_by_hand",
    ),
    "gradients that cannot be differentiated again": Removal(
        "dgl_dmns/core/pool_softmax.py",
        "if torch.is_grad_enabled():  #",
        "if False:  #",
        "tests/test_shared_softmax.py -k differentiated_again",
    ),
    "scores summed in float32": Removal(
        "dgl_dmns/shared_softmax.py",
        "score = dot_score(query.to(dtype), candidate.to(dtype))",
        "score = dot_score(query, candidate)",
        "tests/test_shared_softmax.py -k half_precision_is_summed",
    ),
    "scores outside autocast": Removal(
        "dgl_dmns/core/pool_softmax.py",
        "with torch.autocast(other.device.type, enabled=False):",
        "with torch.autocast(other.device.type, enabled=True):",
        "tests/test_shared_softmax.py -k autocast",
    ),
    "known edges in the mixture": Removal(
        "dgl_dmns/core/mixture.py",
        "rows, columns = known_among(self.known, queries, nodes)",
        "rows, columns = queries[:0], queries[:0]",
        "tests/core/test_mixture.py",
    ),
    "self loops in the mixture": Removal(
        "dgl_dmns/core/mixture.py",
        "if known.exclude_self:  # a self loop",
        "if False:  # a self loop",
        "tests/core/test_mixture.py",
    ),
    "queries without a negative in the mixture": Removal(
        "dgl_dmns/core/mixture.py",
        "density += self._of_saturated(queries[none], nodes)",
        "pass",
        "tests/core/test_mixture.py",
    ),
    "popularity in a batch's destinations": Removal(
        "dgl_dmns/samplers/shared.py",
        "return ratio + self._log_rarity(etype, dst, nodes)",
        "return ratio",
        "tests/samplers/test_shared_loss.py -k 'sums and in-batch'",
    ),
    "negatives that a sampler cannot have drawn": Removal(
        "dgl_dmns/samplers/shared_loss.py",
        "impossible = int((ratio == -torch.inf).sum())",
        "impossible = 0",
        "tests/samplers/test_shared_loss.py -k bad_input",
    ),
    "negatives in the order of their positives": Removal(
        "dgl_dmns/samplers/batches.py",
        "or not torch.equal(neg_src, src.repeat_interleave(k))",
        "",
        "tests/samplers/test_shared_loss.py -k bad_input",
    ),
}


def main() -> int:
    wanted = sys.argv[1:] or list(REMOVALS)
    bad = []
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place, "copy")
        ignored = shutil.ignore_patterns(".*", "__pycache__", "runs", "results", "site", "dist")
        shutil.copytree(ROOT, copy, ignore=ignored)
        for name in wanted:
            one = REMOVALS[name]
            file = copy / one.file
            text = file.read_text(encoding="utf-8")
            if text.count(one.old) != 1:
                say(f"NOT FOUND  {name}: {text.count(one.old)} times in {one.file}")
                bad.append(name)
                continue
            file.write_text(text.replace(one.old, one.new), encoding="utf-8")
            command = f"{sys.executable} -m pytest -q -x -p no:cacheprovider {one.test}"
            env = {**os.environ, "PYTHONPATH": str(copy)}
            done = subprocess.run(
                command, shell=True, cwd=copy, env=env, capture_output=True, text=True, check=False
            )
            file.write_text(text, encoding="utf-8")
            failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
            if done.returncode == 1 and failed:
                say(f"fails      {name}: {failed[0][7:].split(' - ')[0]}")
            else:
                say(f"STILL PASSES  {name} ({done.returncode}): {done.stdout[-300:]}")
                bad.append(name)
    return 1 if bad else 0


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
