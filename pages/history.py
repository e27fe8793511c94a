from pages.ui import frame, past

with frame.page("What have I looked at?"):
    past.history()
