from pages.ui import frame, welcome

with frame.page("Look into a neural network"):
    welcome.home()
