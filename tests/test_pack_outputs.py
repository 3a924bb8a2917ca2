"What `pack`, `to_dense`, `simulate` and `sample` may write and remove: never what is not theirs"
import os
import stat

import pytest

from jetbook.cli import main
from jetbook.data.files import pack
from jetbook.data.paths import InUse, locked, OutputError
from jetbook.data.store import toy_jets


@pytest.fixture
def dense(dense_file): return dense_file


def says(capsys, *line):
    "What the command line says on standard error, having failed"
    capsys.readouterr()
    assert main([str(a) for a in line])==1
    return capsys.readouterr().err


VERBS = [('pack', '{dense}'), ('sample', 'qg'), ('export-dense', '{store}'), ('simulate', 'qg', '-n', 4, '--workers', 1)]


@pytest.mark.parametrize('verb', VERBS, ids=[v[0] for v in VERBS])
def test_outputs_that_are_refused(dense, store_file, tmp_path, verb, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verb = [str(a).format(dense=dense, store=store_file) for a in verb]
    (tmp_path/'folder').mkdir()
    (tmp_path/'folder/mine').write_text('mine')
    (tmp_path/'link').symlink_to('mine')
    (tmp_path/'mine').write_text('mine')
    (tmp_path/'to-folder').symlink_to('folder')
    os.mkfifo(tmp_path/'pipe')
    before = sorted(tmp_path.iterdir())
    for out, why in (('-', 'No name'), ('folder', 'is a folder'), ('link', 'is a link'), ('pipe', 'is a named pipe'),
                     ('to-folder', 'is a link'), ('/dev/null', 'is a device')):
        assert why in says(capsys, *verb, '-o', out, '--overwrite', '-q'), out
    assert 'already exists' in says(capsys, *verb, '-o', 'mine', '-q')
    assert sorted(tmp_path.iterdir())==before
    assert stat.S_ISFIFO(os.stat('pipe').st_mode) and (tmp_path/'mine').read_text()=='mine'
    assert [p.name for p in (tmp_path/'folder').iterdir()]==['mine']


@pytest.mark.parametrize('how', ['itself', 'hard link', 'dots'])
def test_the_source_is_never_replaced(dense, store_file, tmp_path, how, capsys):
    for verb, source in (('pack', dense), ('export-dense', store_file)):
        want = source.read_bytes()
        out = source
        if how=='hard link': os.link(source, out := tmp_path/f'{verb}.link')
        if how=='dots': out = tmp_path/'..'/tmp_path.name/source.name
        assert 'is being read' in says(capsys, verb, source, '-o', out, '--overwrite', '-q')
        assert source.read_bytes()==want


def test_no_name(dense):
    for fn in (lambda: pack(dense, ''), lambda: toy_jets(4).to_dense(''), lambda: pack(dense, ' ')):
        with pytest.raises(OutputError, match='No name'): fn()


def test_one_source_of_several(dense, tmp_path):
    other = toy_jets(8).to_dense(tmp_path/'b.h5')
    with pytest.raises(OutputError, match='is being read'): pack([dense, other], other, overwrite=True, progress=False)


def test_a_folder_of_the_name_of_the_spool(dense, tmp_path):
    "`X.part` of somebody else stays as it is, and so does what a link of that name leads to"
    dest, theirs = tmp_path/'a.jets.h5', tmp_path/'theirs'
    part = tmp_path/'a.jets.h5.part'
    theirs.mkdir()
    for name in ('thesis.tex', 'progress.jsonl', '0.1.pixel', 'store.h5'): (theirs/name).write_text('mine')
    before = sorted(theirs.iterdir())
    part.symlink_to(theirs)
    with pytest.raises(OutputError, match='is a link'): pack(dense, dest, progress=False)
    part.unlink()
    theirs.rename(part)
    with pytest.raises(OutputError, match='not of jetbook'): pack(dense, dest, progress=False)
    part.rename(theirs)
    part.write_text('a file')
    with pytest.raises(OutputError, match='is a file'): pack(dense, dest, progress=False)
    assert part.read_text()=='a file' and sorted(theirs.iterdir())==before and not dest.exists()


def test_a_file_put_into_the_spool(dense, tmp_path):
    "Of a spool of ours only our own files go"
    dest, part = tmp_path/'a.jets.h5', tmp_path/'a.jets.h5.part'
    part.mkdir()
    (part/'.jetbook.pack').touch()
    (part/'0.1.pixel').write_bytes(b'of an earlier run')
    (part/'notes.txt').write_text('mine')
    pack(dense, dest, progress=False)
    assert [p.name for p in part.iterdir()]==['notes.txt']


def test_a_link_put_into_the_spool(dense, tmp_path):
    part = tmp_path/'a.jets.h5.part'
    part.mkdir()
    (part/'.jetbook.pack').touch()
    (part/'1.1.pixel').symlink_to(dense)
    want = dense.read_bytes()
    with pytest.raises(OutputError, match='not a file of pack'): pack(dense, tmp_path/'a.jets.h5', progress=False)
    assert (part/'1.1.pixel').is_symlink() and dense.read_bytes()==want


def test_in_use(dense, tmp_path):
    with locked(tmp_path/'a.jets.h5.part'), pytest.raises(InUse): pack(dense, tmp_path/'a.jets.h5', progress=False)
    pack(dense, tmp_path/'a.jets.h5', progress=False)
    assert not (tmp_path/'a.jets.h5.part').exists()


def test_a_file_system_without_locks(dense, tmp_path, monkeypatch):
    import errno, fcntl
    def none(*args): raise OSError(errno.ENOLCK, 'No locks available')
    for name in ('flock', 'lockf'): monkeypatch.setattr(fcntl, name, none)
    monkeypatch.setenv('HDF5_USE_FILE_LOCKING', 'FALSE')
    assert len(pack(dense, tmp_path/'a.jets.h5', progress=False))==40
    assert not (tmp_path/'a.jets.h5.part').exists()
