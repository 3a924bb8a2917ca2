"B15: training image classifiers on a CPU, images a second of processor time"
import time, warnings
from timing import median, number, ratio, show, side_by_side, spread, table
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset
from samples import jets, what

BS = 128
NETWORKS = dict(sparse_cnn=dict(plain=True), quark_gluon_cnn={}, resnet18={}) # recipe -> settings of the network in the loop

def learner(recipe, store, **settings):
    "A learner of all jets in whole batches, without augmentation, that does not validate"
    from fastai.callback.core import Callback, CancelValidException
    from jetbook.data.loaders import split
    from jetbook.train.recipes import get_recipe
    class NoValidation(Callback):
        def before_validate(self): raise CancelValidException()
    torch.manual_seed(0)
    r = get_recipe(recipe)
    learn = r.func(store, split(store, 4/len(store), 4/len(store)), bs=BS, **({'flip':False} if 'flip' in r.params else {}), **settings)
    n = len(learn.dls.train.idx)//BS*BS
    learn.dls.train.idx,learn.dls.train.n = learn.dls.train.idx[:n],n
    learn.metrics = []
    learn.add_cb(NoValidation())
    return learn

def in_memory(dl):
    "What a loader gives in an epoch, as dense tensors"
    return [torch.cat(o) for o in zip(*dl.new(shuffle=False, reuse=False))]

def loop(net, opt, data):
    "One epoch as a notebook writes it: tensors in memory, a DataLoader, PyTorch's convolutions in the default memory layout"
    for *xb,yb in DataLoader(TensorDataset(*data), batch_size=BS, shuffle=True):
        opt.zero_grad()
        F.cross_entropy(net(*xb), yb).backward()
        opt.step()

def ours(learn):
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)

def ways(recipe, store):
    "The ways to train one network: name -> (function, images); and by how much their logits differ"
    from jetbook.train.recipes import get_recipe
    ref = learner(recipe, store, **NETWORKS[recipe])
    data = in_memory(ref.dls.train)
    net = ref.model.to(memory_format=torch.contiguous_format).train()
    opt = torch.optim.Adam(net.parameters(), 1e-3)
    fp32 = learner(recipe, store)
    with torch.no_grad(): a,b = (m.eval()(*[o[:BS] for o in data[:-1]]) for m in (net, fp32.model))
    net.train()
    n = len(data[0])
    res = {f'{recipe}: loop over a dense array':(lambda: loop(net, opt, data), n), f'{recipe}: `jetbook`, fp32':(lambda: ours(fp32), n)}
    if 'precision' in get_recipe(recipe).params:
        bf16 = learner(recipe, store, precision='bf16')
        res[f'{recipe}: `jetbook`, bf16'] = (lambda: ours(bf16), n)
    return res,float((a-b).abs().max())

def main(tmp, quick=False):
    warnings.filterwarnings('ignore')
    from jetbook.train.training import keep_memory
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_memory() # for all alike
    store,rows,differences = jets(BS+8 if quick else 4*BS+8),[],{}
    for recipe in NETWORKS:
        both,differences[recipe] = ways(recipe, store)
        rates = side_by_side(both, 1 if quick else 5, time.process_time)
        first = next(iter(both))
        rows += [[k, number(median(r)), spread(r), '' if k==first else f'**{ratio(rates,k,first):.2f}**'] for k,r in rates.items()]
    torch.set_num_threads(threads)
    same = ', '.join(f'{v:.0e} (`{k}`)' for k,v in differences.items())
    return f"""## B15: training image classifiers, images a second of processor time

Forward, backward and optimiser of whole epochs in one thread, batches of {BS}, at equal architecture; the largest difference of a logit between the loop's network and ours, at
equal weights: {same}. The loop computes `sparse_cnn` with PyTorch's convolutions of dense images; bf16 is another precision and no like-for-like comparison.
Jets: {what()}.

{table(['way', 'images/s', 'range', 'times the loop'], rows)}
"""

if __name__=='__main__': show(main(None))
