"B6: test AUC of all quark/gluon recipes, same split, three seeds"
import warnings
from pathlib import Path
from timing import number, show, table

RUNS = Path(__file__).resolve().parent/'runs'/'taggers' # kept: what is trained there is not trained again

def main(tmp, quick=False):
    from jetbook.data.hdf5 import sample
    from jetbook.taggers.compare import MEMBERS, OURS, REFERENCES, auc_gain, baselines, compare_recipes, ensemble_scores, tagger_scores, tagger_table
    store,args = sample('qg'),{}
    out,names,members,seeds = RUNS,[*REFERENCES,*OURS],MEMBERS,(0,1,2)
    if quick: out,names,members,seeds,args = Path(tmp)/'taggers',['sage','pfn'],['pfn'],(0,1),dict(n_train=200, epochs=1, valid=.02, test=.02)
    runs = [r for k in names for r in compare_recipes(store, [k], out, (0,) if k=='gat_cheb' else seeds, **args)] # R7's, much the slowest, once
    sp = runs[0].split(store)
    scores = tagger_scores(runs)
    scores = {**scores, 'ensemble':ensemble_scores(scores, members), **baselines(store, sp, seeds=seeds)}
    t = tagger_table(scores)
    refs = [k for k in t.index if k in REFERENCES]
    best,ref = next(k for k in t.index if k not in REFERENCES),refs[0]
    kind = lambda k: REFERENCES.get(k, 'jetbook' if k in OURS or k=='ensemble' else 'no network')
    rows = [[f'`{k}`', kind(k), f'{r.auc:.4f}', f'{r.lo:.4f} to {r.hi:.4f}', '–' if r.spread!=r.spread else f'{r.spread:.4f}', f'{r.accuracy:.4f}', *(f'{r[f"rejection_{e}"]:.1f}' for e in (30,50,70)),
             '–' if r.parameters!=r.parameters else f'{r.parameters:,.0f}', number(r.seconds)] for k,r in t.iterrows()]
    return f"""## B6: test AUC of the taggers

{len(sp.train):,} jets of the shipped sample to train on, {len(sp.test):,} of the test part to report on, {len(seeds)} seeds. Interval: 95%, other test jets; spread: standard deviation between seeds. R7's network was trained once. Seconds by the clock, one thread, on a machine that did other work as well: B5 has processor time.
**`{best}` is {auc_gain(scores[best], scores[ref], n_boot=200 if not quick else 20)} above the best reference, `{ref}`**, jets resampled for both at once (the goal set beforehand was 0.04).

{table(['tagger','from','AUC','interval','spread','accuracy','rejection at 30%','50%','70%','parameters','seconds'], rows)}
"""

if __name__=='__main__':
    import sys, tempfile
    warnings.filterwarnings('ignore')
    with tempfile.TemporaryDirectory() as tmp: show(main(tmp, '--quick' in sys.argv))
