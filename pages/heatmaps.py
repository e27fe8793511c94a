from interp.model import VisionModel
from interp.samples import Image
from pages.ui import frame, workbench
from pages.ui.bar import bar
from pages.ui.bench import load, turn_to, turn_to_kind

with frame.page("What does the model look at?"):
    turn_to_kind(Image)
    model = load(VisionModel)
    if model is not None:
        turn_to("cam", "grad_cam_plus_plus", signed=False, opacity=0.65)
        bar(model)
        workbench.notice()
        workbench.maps(model)
