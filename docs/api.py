"API pages from the exported modules: signatures, docments and where to find more; the modules are read, not run"
import ast, io, re, tokenize

_skip = re.compile(r'(`[^`]*`)|([\\*_$<>\[\]|{}])')

def _plain(s): return _skip.sub(lambda m: m[1] or '\\'+m[2], s.strip())

def _comments(src): return {t.start[0]:t.string.lstrip('#').strip() for t in tokenize.generate_tokens(io.StringIO(src).readline) if t.type==tokenize.COMMENT}

def _arguments(a, drop=0):
    "Parameters of an `ast.arguments` as (stars, `ast.arg`, default or None), and the bare stars and slashes between them as strings"
    pos = a.posonlyargs+a.args
    for i,(arg,d) in enumerate(zip(pos, [None]*(len(pos)-len(a.defaults))+a.defaults)):
        if i>=drop: yield '',arg,d
        if a.posonlyargs and i==len(a.posonlyargs)-1: yield '/'
    if a.vararg: yield '*',a.vararg,None
    elif a.kwonlyargs: yield '*'
    for arg,d in zip(a.kwonlyargs, a.kw_defaults): yield '',arg,d
    if a.kwarg: yield '**',a.kwarg,None

def _text(p):
    if isinstance(p, str): return p
    stars,arg,d = p
    anno = f': {ast.unparse(arg.annotation)}' if arg.annotation else ''
    return stars+arg.arg+anno+(f' = {ast.unparse(d)}' if d is not None and anno else f'={ast.unparse(d)}' if d is not None else '')

def _signature(ps, returns=None): return f"({', '.join(map(_text, ps))})" + (f' -> {ast.unparse(returns)}' if returns else '')

def _fields(ps, notes, returned=''):
    "What the comments beside parameters say, as a field list"
    said = [(p[1].arg, notes.get(p[1].lineno)) for p in ps if not isinstance(p, str)]
    return [f':param {k}: {_plain(v)}' for k,v in said if v] + ([f':returns: {_plain(returned)}'] if returned else [])

def _decorators(f): return {ast.unparse(d.func if isinstance(d, ast.Call) else d).split('.')[-1]:d for d in f.decorator_list}

def _patched(f):
    "Names of the classes that a function is patched into"
    if not _decorators(f).keys() & {'patch','patch_to'}: return []
    to = _decorators(f).get('patch_to')
    a = to.args[0] if to else (f.args.posonlyargs+f.args.args)[0].annotation
    return [ast.unparse(o) for o in (a.elts if isinstance(a, ast.Tuple) else [a])] if a else []

def _is_property(f):
    d = _decorators(f)
    return 'property' in d or 'cached_property' in d or any(k.arg=='as_prop' for o in d.values() if isinstance(o, ast.Call) for k in o.keywords)

def _targets(n): return [t for o in n.targets for t in (o.elts if isinstance(o, ast.Tuple) else [o]) if isinstance(t, ast.Name)]

class Module:
    "One exported module: its public names in the order of the source"
    def __init__(self, path, url, taught):
        src = path.read_text(encoding='utf-8')
        self.name,self.tree,self.notes,self.url,self.taught = path.stem,ast.parse(src),_comments(src),url,taught
        self.doc = ast.get_docstring(self.tree) or ''
        body = self.tree.body
        names = next((set(ast.literal_eval(n.value)) for n in body if isinstance(n, ast.Assign) and n.targets[0].id=='__all__'), set())
        self.methods,self.public = {},[]
        self.docs = {ast.unparse(n.targets[0].value):n.value.value for n in body if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Attribute)
                     and n.targets[0].attr=='__doc__' and isinstance(n.value, ast.Constant)}
        for n in body:
            if isinstance(n, ast.FunctionDef) and (to := _patched(n)):
                for c in to: self.methods.setdefault(c, []).append(n)
            elif isinstance(n, (ast.FunctionDef,ast.ClassDef)) and n.name in names: self.public.append((n.name, n))
            elif isinstance(n, ast.Assign): self.public += [(t.id, n) for t in _targets(n) if t.id in names]

    def _links(self, n, name):
        "Where the source stands, and where the notebook tells of it"
        book = self.taught(name)
        return f'[source]({self.url}{self.name}.py#L{n.lineno}){{.jb-src}}' + (f' [in the book]({book}){{.jb-src}}' if book else '')

    def _directive(self, kind, sig, n, name, body=(), doc=None, depth=3):
        doc = (ast.get_docstring(n) or '') if doc is None else doc
        lines = [f'{":"*depth}{{py:{kind}}} {sig}', self._links(n, name), '', doc if '\n' in doc else _plain(doc), '', *body, ':'*depth, '']
        return '\n'.join(lines)

    def _function(self, f, kind='function', cls='', shown='', drop=0, depth=3):
        "The directive of `f`, of class `cls`, under the name `shown`"
        ps = list(_arguments(f.args, drop))
        last = max([o.lineno for o in ast.walk(f.args) if hasattr(o,'lineno')], default=f.lineno)
        stop = f.body[0].lineno
        returned = next((self.notes[i] for i in range(last+1, stop+1) if i in self.notes and i < stop), '')
        kind = 'property' if _is_property(f) else kind
        sig = (shown or f.name) + ('' if kind=='property' else _signature(ps, f.returns))
        return self._directive(kind, sig, f, f'{cls}.{f.name}' if cls else f.name, _fields(ps, self.notes, returned), depth=depth)

    def _methods(self, cls, body):
        fs = [f for f in body if isinstance(f, ast.FunctionDef)] + self.methods.pop(cls, [])
        return [self._function(f, 'method', cls, drop='staticmethod' not in _decorators(f)) for f in fs
                if not f.name.startswith('_') and 'setter' not in _decorators(f) and (ast.get_docstring(f) or _fields(_arguments(f.args), self.notes))]

    def _class(self, c):
        init = next((f for f in c.body if isinstance(f, ast.FunctionDef) and f.name=='__init__'), None)
        fields = [('', ast.arg(f.target.id, f.annotation, lineno=f.lineno), f.value) for f in c.body if isinstance(f, ast.AnnAssign)]
        ps = list(_arguments(init.args, 1)) if init else fields if 'dataclass' in _decorators(c) else []
        return self._directive('class', c.name+_signature(ps), c, c.name, [*_fields(ps, self.notes), '', *self._methods(c.name, c.body)], depth=4)

    def _data(self, name, n):
        value = ast.unparse(n.value)
        sig = name + (f'\n:value: {value}' if len(value) < 70 and not isinstance(n.value, (ast.Dict,ast.Call)) else '')
        doc = self.docs.get(name) or self.notes.get(n.lineno, '')
        keys = [ast.literal_eval(k) for k in n.value.keys if isinstance(k, ast.Constant)] if isinstance(n.value, ast.Dict) else \
               [k.arg for k in n.value.keywords] if isinstance(n.value, ast.Call) and ast.unparse(n.value.func)=='dict' else []
        return self._directive('data', sig, n, name, ['Keys: '+', '.join(f'`{k}`' for k in keys)] if keys else (), doc=doc)

    def page(self, book):
        "MyST text of the module's page; `book`: link to the notebook that teaches it"
        head = [f'# jetbook.{self.name}', f'*{_plain(self.doc)}*', f'Written, explained and tested in {book}.', f'```{{py:module}} jetbook.{self.name}\n```']
        parts = [self._class(n) if isinstance(n, ast.ClassDef) else self._function(n) if isinstance(n, ast.FunctionDef) else self._data(k, n) for k,n in self.public]
        for cls in list(self.methods):
            if ms := [f for f in self.methods[cls] if not f.name.startswith('_')]:
                parts.append(f'## What `{cls}` gains\n')
                parts += [self._function(f, 'method', cls, f'{cls}.{f.name}', drop=1) for f in ms]
        return '\n\n'.join(head)+'\n\n'+'\n\n'.join(parts)

    def names(self): return [k for k,_ in self.public]
