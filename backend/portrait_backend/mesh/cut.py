"""Cut a chart along short paths until it is a topological disk: holes are joined to the border, handles are opened.

Tree-cotree decomposition (Eppstein 2003; Erickson and Whittlesey 2005): a tree of shortest paths from the
border over the vertices, a spanning tree over the faces that avoids it; every edge left in neither closes one
loop, and the chart is cut along that edge and its paths back to the border.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components, dijkstra, minimum_spanning_tree

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def cut_to_disk(vertices: FloatArray, faces: IntArray) -> tuple[IntArray, IntArray]:
    """Return the connected chart (V, 3), (F, 3) cut open: source (V',) original vertex of each new one, new faces (F, 3).

    Vertices along a cut appear twice; where fans of faces touch in one vertex only, each fan gets its own.
    A chart that is a disk already keeps its shape.
    """
    edges, left, right, rim = _edges(faces)
    cut = np.zeros(len(edges), dtype=bool)
    if len(rim):
        cut = _cut_edges(vertices, len(faces), edges, left, right, np.unique(rim))
    return _open(faces, edges[~cut], left[~cut], right[~cut])


def is_disk(faces: IntArray) -> bool:
    """Return True if connected faces (F, 3) form a disk: Euler characteristic 1, no edge of three faces, no pinched vertex."""
    used, local = np.unique(faces, return_inverse=True)
    edges = np.sort(local.reshape(-1, 3)[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    keys, counts = np.unique(edges[:, 0] * len(used) + edges[:, 1], return_counts=True)
    rim = np.stack([keys // len(used), keys % len(used)], axis=1)[counts == 1]
    pinched = (np.bincount(rim.ravel(), minlength=len(used)) > 2).any()
    return len(used) - len(keys) + len(faces) == 1 and not pinched and int(counts.max()) <= 2


def _edges(faces: IntArray) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Return inner edges (E, 2), their two faces (E,), (E,), and the rim edges (R, 2)."""
    sides = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    keys = sides[:, 0] * (int(faces.max()) + 1) + sides[:, 1]
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    first, second = order[:-1][same], order[1:][same]
    alone = np.ones(len(sides), dtype=bool)
    alone[first] = alone[second] = False
    return sides[first], first // 3, second // 3, sides[alone]


def _cut_edges(vertices: FloatArray, face_count: int, edges: IntArray, left: IntArray, right: IntArray, rim: IntArray) -> NDArray[np.bool_]:
    """Return (E,) bool: the inner edges to cut."""
    count = len(vertices)
    length = np.linalg.norm(vertices[edges[:, 0]] - vertices[edges[:, 1]], axis=1) + 1e-12
    graph = sparse.csr_array((length, (edges[:, 0], edges[:, 1])), shape=(count, count))
    distance, parent, _ = dijkstra(graph, directed=False, indices=rim, min_only=True, return_predecessors=True)
    in_tree = (parent[edges[:, 0]] == edges[:, 1]) | (parent[edges[:, 1]] == edges[:, 0])

    loops = np.flatnonzero(~in_tree)
    reach = distance[edges[loops, 0]] + distance[edges[loops, 1]] + length[loops]
    weights = 1 + reach.max() - reach if len(loops) else reach
    dual = sparse.csr_array((weights, (left[loops], right[loops])), shape=(face_count, face_count))
    crossed = minimum_spanning_tree(dual).tocoo()
    pairs = np.minimum(left, right) * face_count + np.maximum(left, right)
    crossed_pairs = np.minimum(crossed.row, crossed.col).astype(np.int64) * face_count + np.maximum(crossed.row, crossed.col)
    open_edges = loops[~np.isin(pairs[loops], crossed_pairs)]

    on_path = np.zeros(count, dtype=bool)
    for vertex in edges[open_edges].ravel().tolist():
        while vertex >= 0 and parent[vertex] >= 0 and not on_path[vertex]:
            on_path[vertex] = True
            vertex = int(parent[vertex])
    child = np.where(parent[edges[:, 0]] == edges[:, 1], edges[:, 0], edges[:, 1])
    cut = in_tree & on_path[child]
    cut[open_edges] = True
    return cut


def _open(faces: IntArray, joined: IntArray, left: IntArray, right: IntArray) -> tuple[IntArray, IntArray]:
    """Give each fan of faces that hang together over the `joined` edges (E, 2) its own vertex."""
    rows, columns = [], []
    for end in range(2):
        corner = joined[:, end][:, None]
        rows.append(3 * left + (faces[left] == corner).argmax(1))
        columns.append(3 * right + (faces[right] == corner).argmax(1))
    ends = (np.concatenate(rows), np.concatenate(columns))
    graph = sparse.csr_array((np.ones(len(ends[0])), ends), shape=(faces.size, faces.size))
    _, fan = connected_components(graph, directed=False)
    source = np.empty(int(fan.max()) + 1, dtype=np.int64)
    source[fan] = faces.ravel()
    return source, fan.reshape(-1, 3).astype(np.int64)
