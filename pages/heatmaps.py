from pages.ui import frame, workbench
from pages.ui.bar import bar

with frame.page("What does the model look at?"):
    model = workbench.load()
    if model is not None:
        bar(model)
        workbench.notice()
        workbench.heatmaps(model)
