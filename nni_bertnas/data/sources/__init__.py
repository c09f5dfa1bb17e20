"""Where rows come from. One module and one row of SOURCES each."""

from collections.abc import Mapping

from nni_bertnas.data.sources import disk, files, glue, hub, package
from nni_bertnas.data.sources.source import Source

SOURCES: Mapping[str, Source] = {
    "package": package.SOURCE,
    "glue": glue.SOURCE,
    "hub": hub.SOURCE,
    "disk": disk.SOURCE,
    "files": files.SOURCE,
}
