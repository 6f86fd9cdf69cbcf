"""Import weights of a network that a plug-in declares by @network."""

import re

from elbocli.errors import UsageError
from elbocli.files.import_options import ImportOptions
from elbocli.files.yaml_text import parse_yaml
from elbocli.networks import config_of
from elbocli.networks.published import STATE_DICT_OPTIONS, Imported, Source, fitted, range_settings, source_format, state_dict

KEY = re.compile(r"(^|,)\s*(\w+)=")


@source_format(
    "network",
    recognises=lambda source: False,  # chosen by --network
    takes=(*STATE_DICT_OPTIONS, "size", "channels", "num_classes", "network"),
)
def own_network(source: Source, options: ImportOptions) -> Imported:
    """Import weights of the network family that --network names, such as `mlp:width=64,levels=[1,2]`."""
    if not options.size or not options.channels:
        raise UsageError("--network: add --size and --channels of the network's training images")
    family, _, text = options.network.partition(":")
    settings = parse_yaml("{" + KEY.sub(r"\1 \2: ", text) + "}", "--network")
    sizes = {"image_size": options.size, "image_channels": options.channels, "num_classes": options.num_classes or 0}
    config = config_of({"family": family, **sizes, **settings}, "--network")
    tensors, averaged, _ = state_dict(source, options)
    trained = range_settings(str(getattr(config, "code", "logsnr")), source, options)
    return Imported(config, fitted(tensors, config, source), trained, averaged)
