"""What the comments beside parameters say, in the pages of `sphinx.ext.autodoc`.

jetbook documents parameters as fastcore does ("docments"): a comment on the parameter's line. This hook turns them into the `:param:` fields that
Sphinx knows, and Markdown's backticks into reStructuredText's.
"""
import ast, inspect, re, sys, textwrap, tokenize
from functools import cache
from io import StringIO

from fastcore.docments import docments

ARXIV = re.compile(r'\[(\d{4}\.\d{4,5})\]')
LINK = re.compile(r'\[([^][]+)\]\((https?://[^)\s]+)\)')
SPECIAL = re.compile(r'([*|\\]|_(?=\W|$))')

def rst(text):
    "A line of a docstring, which is Markdown, as reStructuredText"
    parts = re.split(r'(`[^`]+`)', text)
    for i, part in enumerate(parts):
        if i % 2:
            before = '\\ ' if parts[i-1][-1:].isalnum() else ''
            after = '\\ ' if parts[i+1][:1].isalnum() else ''
            parts[i] = f'{before}`{part}`{after}'
            continue
        part = SPECIAL.sub(r'\\\1', part)
        part = ARXIV.sub(r'`arXiv:\1 <https://arxiv.org/abs/\1>`__', part)
        parts[i] = LINK.sub(r'`\1 <\2>`__', part)
    return ''.join(parts)

def _comments(source):
    "The comment on each line, by its number"
    tokens = tokenize.generate_tokens(StringIO(source).readline)
    return {t.start[0]: t.string.lstrip('# ') for t in tokens if t.type == tokenize.COMMENT}

def returned(obj):
    "The comment behind the closing parenthesis of a function, `): # JetStore`, which says what it returns"
    source = textwrap.dedent(inspect.getsource(obj))
    node = next((n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)), None)
    if node is None or inspect.isclass(obj):
        return ''
    last = max([a.end_lineno for a in ast.walk(node.args) if hasattr(a, 'end_lineno')], default=node.lineno)
    comments = _comments(source)
    return next((comments[i] for i in range(last + 1, node.body[0].lineno) if i in comments), '')

def fields(obj):
    "`:param:` and `:returns:` lines of a function or class"
    try:
        notes = docments(obj, full=True)
        returns = returned(inspect.unwrap(obj))
    except (TypeError, OSError, ValueError, SyntaxError):
        return []
    said = {k: ' '.join((v.get('docment') or '').split()) for k, v in notes.items()}
    returns = said.pop('return', '') or returns
    lines = [f':param {k}: {rst(v)}' for k, v in said.items() if v and k != 'self']
    return lines + ([f':returns: {rst(returns)}'] if returns else [])

@cache
def data_comments(module):
    "The comment at the end of each assignment of a module's source, by name"
    source = inspect.getsource(module)
    comments = _comments(source)
    found = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            found[ast.unparse(target)] = comments.get(node.end_lineno) or comments.get(node.lineno, '')
    return found

def process_docstring(app, what, name, obj, options, lines):
    if what == 'data':
        parent, _, last = name.rpartition('.')
        note = data_comments(sys.modules[parent]).get(last)
        if note or not type(obj).__module__.startswith('jetbook'):
            lines[:] = [rst(note or '')]
        return
    lines[:] = [rst(line) for line in lines]
    if what in ('function', 'method', 'class'):
        lines += ['', *fields(obj), '']

def skip_member(app, what, name, obj, skip, options):
    "Fields of a namedtuple, which its docstring names"
    return True if (getattr(obj, '__doc__', None) or '').startswith('Alias for field number') else None

def setup(app):
    app.connect('autodoc-skip-member', skip_member)
    app.connect('autodoc-process-docstring', process_docstring)
    return dict(parallel_read_safe=True, version='1')
