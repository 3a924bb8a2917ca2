"The fuzz of tests/fuzz in small: damages are seeded, the judgement is right, 60 damaged files end well"

import json
import os
import struct

import numpy as np
import pytest

from fuzz import damage as D
from fuzz import files as F
from fuzz import pool
from fuzz import subjects as S

pytestmark = pytest.mark.skipif(
    not hasattr(os, 'fork') or not os.path.exists('/proc/self/status'), reason='needs fork and /proc'
)

QUICK = (
    'store',
    'store, mapped',
    'dense, chunked',
    'dense, gzip',
    'parquet',
    'half a pack',
    'mean_image',
    'graph cache',
)


@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
    "Sound inputs of the quick subjects, and what they give"
    good, place = (tmp_path_factory.mktemp(k) for k in ('good', 'place'))
    some = [s for s in S.subjects() if s.name in QUICK]
    needs_run = {'predict'}
    some = [s._replace(ops=[o for o in s.ops if o.name not in needs_run]) for s in some]
    S.prepare(good, some)
    return good, place, some, {s.name: F.reference(s, good, place) for s in some}


def test_damaged_files_are_refused_or_harmless(inputs):
    good, place, some, refs = inputs
    cases = [(some[i % len(some)], i) for i in range(60)]
    records = list(F.run_cases(cases, 3, good, place, refs))
    assert len(records) == 60
    bad = [r for r in records if r['end'] not in F.GOOD]
    assert not bad, json.dumps(bad, indent=1)[:3000]


def test_the_same_seed_gives_the_same_damage(tmp_path):
    for i in range(40):
        said = []
        for k in range(2):
            f = tmp_path / f'{k}' / 'a.json'
            f.parent.mkdir(exist_ok=True)
            D._gone(f)
            f.write_text('{"a": [1, 2.5, "x"], "b": {"c": null, "d": true}}')
            said.append(D.damage(f, np.random.default_rng(i)))
        assert said[0] == said[1]


def test_the_header_of_tensors_is_what_is_damaged(tmp_path):
    text = json.dumps(dict(a=dict(dtype='F32', shape=[1], data_offsets=[0, 4]))).encode()
    f = tmp_path / 'a.safetensors'
    whole = struct.pack('<Q', len(text)) + text + b'four'
    for i in range(20):
        f.write_bytes(whole)
        D.damage_header(f, np.random.default_rng(i))
        assert f.read_bytes() != whole and f.read_bytes().endswith(b'four')


class _Ops:
    "Operations that end in each of the ways"

    @staticmethod
    def ok(folder, good):
        return dict(x=np.arange(3))

    @staticmethod
    def other(folder, good):
        return dict(x=np.arange(3) + 1)

    @staticmethod
    def refuses(folder, good):
        from jetbook.data.store import DataError

        raise DataError('wrong', found='x')

    @staticmethod
    def escapes(folder, good):
        from jetbook.data.store import JetbookError

        e = JetbookError('x')
        e.args = ('\x1b[2J',)
        raise e

    @staticmethod
    def fails(folder, good):
        raise KeyError('a')

    @staticmethod
    def swells(folder, good):
        return np.ones(290 * 2**20, np.uint8)


@pytest.mark.parametrize(
    'name,end',
    dict(
        ok='harmless', other='silent', refuses='refused', escapes='escapes', fails='foreign', swells='memory'
    ).items(),
)
def test_judgement(name, end, tmp_path):
    s = S.Subject('toy', 'store', 1, None, [S.Op('op', getattr(_Ops, name))])
    refs = {'op': dict(end='ok', parts=S.canon_parts(_Ops.ok(None, None)))}
    assert F.judge(s, 'a.h5', [F.call(s.ops[0], tmp_path, tmp_path)], refs)['end'] == end


def test_what_verify_finds_is_not_silent():
    s = S.Subject('toy', 'store', 1, None, [], checks=('verify',))
    results = [dict(op='open', end='ok', parts={'x': '1'}), dict(op='verify', end='refused')]
    refs = dict(open=dict(end='ok', parts={'x': '0'}), verify=dict(end='ok', parts={}))
    assert F.judge(s, 'a.h5', results, refs)['end'] == 'verify'
    assert F.judge(s, 'a.h5', results[:1], refs)['end'] == 'silent'


def _dies(say):
    say(begin=1)
    os.kill(os.getpid(), 11)


def test_a_crash_is_seen():
    *_, end = pool.listen(*pool.fork(_dies), 10)
    assert end == dict(end=11)


def _sleeps(say):
    import time

    time.sleep(60)


def test_a_hang_is_seen():
    (end,) = pool.listen(*pool.fork(_sleeps), 0.5)
    assert end == dict(end='hang')
