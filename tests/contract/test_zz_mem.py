import torch
import tests.contract.test_models_contract as T
from dataclasses import replace
import numpy as np
def test_mem(synthetic):
    _,cohort=synthetic
    data=T.build_learning_data(cohort,0,None,molecules=True)
    few,v=[],0
    for p in T.long_patients(data,20):
        if v>=8: break
        few.append(p); v+=len(data.dataset.patients[p])
    b=data.dataset.collate(few); y=b.target[b.mask]; m=data.context.molecules.fragment_mask
    _,inv,cnt=torch.unique(m,dim=0,return_inverse=True,return_counts=True)
    print("RES drugs",m.shape,"same fragment sets",[(m[inv==i][0].sum().item(),c.item()) for i,c in enumerate(cnt) if c>1], "visits",y.shape, "per visit",y.sum(1).tolist())
    fd=replace(data,split=replace(data.split,train=np.array(few),validation=np.array(few)))
    for mod,lr in (({"d_model":32},1e-3),({"d_model":32},5e-4),({"d_model":32,"n_heads":1,"gnn_layers":3},1e-3)):
      for seed in (0,1,2):
        config=T.make_config("molerec",mod,lr=lr,epochs=1000,patience=1500)
        config=config.model_copy(update={"loss":config.loss.model_copy(update={"gate":"none","margin_weight":0.0})})
        h=[]; L=[]
        def rep(row,state):
            h.append(row["val_jaccard"]); L.append(row["train_loss"])
            if h[-1]>.9: raise T.Enough
        torch.manual_seed(seed)
        try: T.fit(config,fd,T.build(config,fd),report=rep)
        except T.Enough: pass
        print("RES",mod,lr,"seed",seed,"n",len(h),"max",round(max(h),3),[round(x,3) for x in h[::100]],[round(x,3) for x in L[::100]],flush=True)
