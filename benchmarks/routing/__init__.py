"""Accuracy and speed of the router, compared with targets and with simpler methods.

    python -m benchmarks.routing --data oos-eval/data --part accuracy speed

`--data` is a folder with CLINC150's `data_full.json` and `domains.json`: github.com/clinc/oos-eval, CC BY 3.0. Examples
are drawn anew for each of `--seeds`; a figure is the mean over the draws. Measures, in % but for the last two:

    accuracy        the best route is the right one, whatever the threshold
    AUROC           the probability that a request has a higher confidence than an out-of-scope one
    OOS recall      out-of-scope requests below the confidence that 95 % of the test's requests reach
    retention       requests that reach the threshold that the router chose by itself, for 95 %
    OOS refused     out-of-scope requests that do not
    ECE             expected calibration error, from 0 to 1 (15 bins, requests in scope)
    ms, s           this thread's own processor time: other programs on the machine add little to it

OOS, out of scope: a request for no route. `router` is trained on the examples and names, nothing else; `shipped
negatives` also on the shipped list of general requests, as every router is by default; `100 negatives` on those of
CLINC150's own `oos_train` instead.
"""
