"B9: every anomaly score in both directions of two pairs, three seeds"
import warnings
from pathlib import Path
from timing import show, table

RUNS = Path(__file__).resolve().parent/'runs'/'anomaly' # kept: what is fitted there is not fitted again

def found(tmp, quick=False): # direction -> (scores, store): what the table, and the notebook that shows it, are made of
    from jetbook.data.hdf5 import sample
    from jetbook.taggers.contrastive import CONTRASTIVE_METHODS
    from jetbook.anomaly.methods import PAIRS
    from jetbook.anomaly.search import SIMPLE, ceiling, search
    methods,out,seeds,args = CONTRASTIVE_METHODS,RUNS,(0,1,2),{}
    if quick: methods,out,seeds,args = {k:CONTRASTIVE_METHODS[k] for k in SIMPLE},Path(tmp)/'anomaly',(0,1),dict(n_train=500)
    res = {}
    for d,(name,background) in PAIRS.items():
        store = sample(name)
        scores = search(store, background, out/d.replace(' -> ','-'), methods, seeds, progress=False, **args)
        res[d] = {**scores, 'told the labels':ceiling(store, background, seeds)},store
    return res

def main(tmp, quick=False):
    from jetbook.anomaly.search import both_directions, search_table
    tables = {d:search_table(s, store.columns['m0'], n_boot=20 if quick else 200) for d,(s,store) in found(tmp, quick).items()}
    pairs = [dict(list(tables.items())[i:i+2]) for i in (0,2)]
    text = """## B9: anomaly scores in both directions

At most 4,800 background jets of a shipped sample to learn from, the test part (30%) to report on, three seeds. `a -> b`: a is background, b is looked for. AUC with its 95% interval over test jets and, after ±, the standard deviation between seeds; best significance improvement (at least 10 background jets pass); background rejection at 50% signal efficiency; signal efficiency where 5% of background kept aside passes, and the background that then passes in the test part; Jensen-Shannon distance of the background's mass before and after that cut (in brackets what 95% of cuts at random stay below). Signal labels were used by `told the labels` alone; CWoLa was given a mixture with the share named.
"""
    num = lambda v,f: '–' if v!=v or v is None else format(v, f)
    for pair in pairs:
        both = both_directions(pair)
        text += '\n'+table(['method', *pair, 'the worse'], [[k, *(f'{r[d].auc:.3f} [{r[d].lo:.3f}, {r[d].hi:.3f}] ± {num(r[d].spread,".3f")}' for d in pair), f'{r["worse"].auc:.3f}'] for k,r in both.iterrows()])+'\n'
        for d,t in pair.items():
            text += f'\n### {d}\n\n'+table(['method','AUC','significance improvement','rejection at 50%','signal kept at the cut','background kept','mass sculpting'],
                [[k, f'{r.auc:.3f}', f'{r.sic:.2f}', f'{r.rejection_50:.1f}', f'{r.eps_s:.1%}', f'{r.eps_b:.1%}', f'{r.sculpting:.2f} ({r.sculpting_noise:.2f})'] for k,r in t.iterrows()])+'\n'
    return text

if __name__=='__main__':
    import sys, tempfile
    warnings.filterwarnings('ignore')
    with tempfile.TemporaryDirectory() as tmp: show(main(tmp, '--quick' in sys.argv))
