"""How all pictures look."""

# Okabe and Ito's colours, which colour-blind people can distinguish.
COLOURS = {
    "smollit": "#0072B2",
    "smollit-tuned": "#56B4E9",
    "trl": "#E69F00",
    "trl-tuned": "#D55E00",
    "floor": "#999999",
}
STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "savefig.dpi": 130,
}
