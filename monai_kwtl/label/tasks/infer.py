"""The infer task: the mask of an image of any size, as PNG, TIFF, GeoJSON or the XML of viewers. Needs monailabel."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.basic_infer import BasicInferTask

from monai_kwtl.data.loading import read_image
from monai_kwtl.data.pool import scan_images
from monai_kwtl.errors import KWTLError
from monai_kwtl.label.http_errors import answered
from monai_kwtl.label.settings import LabelSettings
from monai_kwtl.label.state.labels import write_masks
from monai_kwtl.label.state.outlines import geojson, mask_outlines, xml
from monai_kwtl.label.state.studies import Studies
from monai_kwtl.label.state.weights import ModelFolder
from monai_kwtl.networks.choice import load_network, network_for
from monai_kwtl.pipeline.scoring import logits_of, tiles
from monai_kwtl.windows.box import Box, pixels_inside

__all__ = ["KWTLInfer", "epistemic_infer"]

RESULTS = (".png", ".tif", ".tiff", ".geojson", ".xml")


class KWTLInfer(BasicInferTask):
    """Segments one image, or all pages of a file, at full resolution.

    Args:
        settings: of the app.
        studies: the images.
        models: the weights.
    """

    def __init__(self, settings: LabelSettings, studies: Studies, models: ModelFolder) -> None:
        super().__init__(
            path=str(models.current),
            network=network_for(None),
            type=InferType.SEGMENTATION,
            labels={"background": 0, "cell": 1},
            dimension=2,
            description="cells of one kind, at full resolution",
            config={"result_extension": list(RESULTS), "threshold": 0.5},
        )
        self.settings, self.studies, self.models = settings, studies, models
        self.tiled = tiles(settings.tile, settings.amp)

    def pre_transforms(self, data: Any = None) -> Sequence[Any]:
        """Return None: images are read by the core."""
        return []

    def post_transforms(self, data: Any = None) -> Sequence[Any]:
        """Return None: masks are made by the core."""
        return []

    def __call__(self, request: Mapping[str, Any], callbacks: Any = None) -> tuple[str, dict[str, Any]]:
        """Segment an image.

        Args:
            request: ``image``, a path; ``page`` of a file of several; ``result_extension``, one of ``.png`` (of one
                page), ``.tif``, ``.geojson`` and ``.xml``; ``threshold`` of the probability; ``location`` [x, y] and
                ``size`` [width, height], for a result that is empty outside; ``polygons``, true adds GeoJSON to the
                answer.
            callbacks: not used.

        Returns:
            The path of the result, a temporary file, and what is to be said about it.

        Raises:
            HTTPException: 400 for a request that makes no sense.
        """
        begun = time.time()
        with answered():
            pages = self._pages(request)
            extension = request.get("result_extension")
            extension = extension if isinstance(extension, str) else (".png" if len(pages) == 1 else ".tif")
            if extension not in RESULTS or (len(pages) > 1 and extension in (".png", ".xml")):
                kind = f"an image of {len(pages)} pages" if len(pages) > 1 else "a result"
                raise KWTLError(f"{kind} cannot be a {extension[:20]}; use one of {', '.join(RESULTS)}.")
            threshold = request.get("threshold", 0.5)
            if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 < threshold < 1:
                raise KWTLError(f"threshold must be between 0 and 1, got {str(threshold)[:40]!r}.")
            masks = [self._cut(self._probability(page) >= threshold, request) for page in pages]
            stream = tempfile.NamedTemporaryFile(prefix="kwtl_", suffix=extension, delete=False)  # noqa: SIM115
            stream.close()
            try:
                self._write(Path(stream.name), masks, pages)
            except BaseException:
                Path(stream.name).unlink(missing_ok=True)
                raise
        answer: dict[str, Any] = {
            "label_names": self.labels,
            "foreground": float(np.mean([mask.mean() for mask in masks])),
            "model_sha256": self.models.sha256(),
            "latencies": {"total": round(time.time() - begun, 3)},
        }
        if request.get("polygons") in (True, "true"):
            answer["geojson"] = self._geojson(masks, pages)
        return stream.name, answer

    def _pages(self, request: Mapping[str, Any]) -> list[dict[str, Any]]:
        path = str(request["image"])
        pages = [item for item in self.studies.items() if Path(item["image"]).resolve() == Path(path).resolve()]
        if not pages:  # one that came with the request
            pages = scan_images([{"image": path, "name": Path(path).name, "page": None}])
        if request.get("page") is None:
            return pages
        found = [page for page in pages if page["page"] == request["page"]]
        if not found:
            raise KWTLError(f"{pages[0]['name']} has no page {str(request['page'])[:20]} (counted from 0).")
        return found

    def _probability(self, item: Mapping[str, Any]) -> np.ndarray:
        logits = logits_of(read_image(item, self.settings.rescale), self._network(), self.tiled)
        return torch.sigmoid(torch.from_numpy(logits)).numpy()

    def _network(self) -> torch.nn.Module:
        return self.models.network()

    @staticmethod
    def _cut(mask: np.ndarray, request: Mapping[str, Any]) -> np.ndarray:
        location, size = request.get("location") or (0, 0), request.get("size") or (0, 0)
        numbers = [*location, *size] if all(isinstance(pair, (list, tuple)) for pair in (location, size)) else []
        if len(numbers) != 4 or not all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in numbers):
            raise KWTLError("location and size must be two numbers each, [x, y] and [width, height].")
        x, y, width, height = (max(0, int(number)) for number in numbers)
        if not width or not height:
            return mask
        return mask & pixels_inside(mask.shape, [Box(x, y, width, height)])

    def _write(self, path: Path, masks: Sequence[np.ndarray], pages: Sequence[Mapping[str, Any]]) -> None:
        if path.suffix == ".geojson":
            path.write_text(json.dumps(self._geojson(masks, pages)) + "\n", encoding="ascii")
        elif path.suffix == ".xml":
            path.write_bytes(xml(mask_outlines(masks[0])))
        else:
            write_masks(path, masks)

    @staticmethod
    def _geojson(masks: Sequence[np.ndarray], pages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        collections = [geojson(mask_outlines(mask), page["page"]) for mask, page in zip(masks, pages, strict=True)]
        features = [feature for collection in collections for feature in collection["features"]]
        return {"type": "FeatureCollection", "features": features}


class _DropoutInfer(KWTLInfer):
    """Probabilities with dropout at work, as MONAI Label's epistemic scoring wants them."""

    def __call__(self, request: Mapping[str, Any], callbacks: Any = None) -> tuple[None, dict[str, Any]]:
        probability = torch.from_numpy(self._probability(self._pages(request)[0]))[None]
        return None, {self.output_label_key: MetaTensor(probability)}  # its scoring sums with NumPy: no plain tensor

    def _network(self) -> torch.nn.Module:
        network = self._networks.get("dropout")
        if network is None:
            network = load_network(self.models.current, device=self.models.device).eval()
            layers = [module for module in network.modules() if isinstance(module, torch.nn.Dropout)]
            if not layers:
                raise KWTLError(f"{type(network).__name__} has no dropout, which epistemic scoring needs.")
            layers[-1].p = 0.5
            layers[-1].train()
            self._networks["dropout"] = network
        return network


def epistemic_infer(settings: LabelSettings, studies: Studies, models: ModelFolder) -> KWTLInfer:
    """Make the task that MONAI Label's own ``EpistemicScoring`` runs, for comparison: FCRN with dropout at work."""
    return _DropoutInfer(settings, studies, models)
