"""The route of the images that were requested as URLs."""

from __future__ import annotations

from fastapi import APIRouter, Response

from load_balancer.http.image_store import ImageStore
from load_balancer.http.openapi import FETCH, FILES
from load_balancer.http.responses import failure, typed_errors
from weir.errors import NotFound


def image_files(store: ImageStore) -> APIRouter:
    """Creates the route that fetches an image of the store. It needs no key: the name is one."""
    router = APIRouter()

    @router.get(FILES + "/{name}", **FETCH)
    @typed_errors
    async def file(name: str) -> Response:
        content = await store.get(name)
        if content is None:
            return failure(NotFound("there is no such file, or its time is over", param="name"))
        return Response(content, media_type=f"image/{name.rpartition('.')[2]}")

    return router
