"""Claims of the field as experiments: each with a control that could make it fail and a verdict computed from its runs.

One function a claim, one file a system; `catalogue.find` looks one up, `running.run` runs it, `table.rows` judges all.
"""
