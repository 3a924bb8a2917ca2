"""A seeded fuzz of damaged files and of kills.

`make fuzz`, or `make fuzz ARGS='--files 500 --kills 20 --seed 1'`; `ARGS='--replay f1-203'` shows one case.

**Files.** Sound inputs of every kind that jetbook reads are made once. Each case copies one of them,
damages one file of it and calls what reads it. There are four good ends:

- *refused*: an error of jetbook's own family (`JetbookError`), in plain, printable words;
- *harmless*: the very numbers that the sound file gives;
- *as read*: files of other people (dense HDF5, parquet) carry no checksum that jetbook could compare, so
  what counts is that the store holds, bit for bit, what h5py or pyarrow reads from the damaged file;
- *verify*: opening gave other numbers, and `jetbook verify` refuses the store.

All others are findings: *foreign* (another exception), *crash*, *hang* (20 s of its own), *memory* (256 MB
more than before, for files below 2 MB), *silent* (other numbers and no error), *touched* (another file was
changed), *escapes* (an error with control characters, which would reach the terminal).

**Kills.** Each verb that writes runs in a process that is ended by SIGKILL at a random moment, or just
before a random one of its file operations (open for writing, rename, remove, mkdir), once to three times.
Then it is run again. Good is *whole*: the result is there and equal to that of an undisturbed run, all
files of the user's are as they were, and there is no file that an undisturbed run would not leave. Findings
are *stuck* (it does not run again), *lost* (the result is missing or another one), *left* (a temporary
file), *bare* (a run without its pictures), *touched*, *broken* (under the final name lies something half-written), *both* (two at once into one
folder, and both say that they won), *orphans* (worker processes go on).

**What is left out, and why**

- `history.csv` and `metrics.json` are notes in plain text, for people to read and edit; they carry no
  checksum. A changed digit there shows as another figure in a table. It is counted as *text*, not as
  silent; no score that jetbook computes depends on them. Whatever else is wrong with them must be an error
  like any other.
- `created_by`, `versions` and the pictures: nothing reads them back.
- Whole arrays that somebody removed, renamed or wrote anew with an HDF5 library: that is an edit, and adding
  a column in this way is allowed. Such cases are counted as *edited*. A value or an attribute that is
  changed in place must be found.
- Forgery. A checksum is no signature: who changes a file on purpose can also write the checksum that
  belongs to it. Edits made with h5py or a JSON library without it are in; tests/test_hostile.py has files
  that are meant to harm.
- The parsers below: where pyarrow itself ends while it is asked for comparison, that isn't counted.
- Power loss. A kill leaves what was written in the page cache; what an unplugged disk does is not tried.
- Bytes that no format uses (padding, free space, an old object's remains in HDF5) are damaged too, and are
  harmless.
"""
