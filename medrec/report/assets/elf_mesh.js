"use strict";
// Volumes and surfaces: no page, no drawing. A volume is {data, shape, origin, step}; `data` is in C
// order (z fastest), positions are in the units of `origin` and `step`.
const elfMesh = (() => {
  // The inflate of 3Dmol's bundle, reached through its reader of gzipped binary volumes: it works
  // at once and in every browser, which DecompressionStream does not.
  const bytes = (text) => {
    class Unpacked extends $3Dmol.VolumeData {
      ccp4(content) { this.content = content; }
    }
    return new Unpacked(text, "ccp4.gz").content;
  };

  const decode = (codes, low, high) =>
    Float32Array.from(codes, (code) => low + (high - low) * code / 255);

  // Value and, if `slope` is given, gradient per unit length, trilinear; the edge value outside.
  const sample = (volume, x, y, z, slope) => {
    const { data, shape, origin, step } = volume;
    const at = [x, y, z], base = [0, 0, 0], part = [0, 0, 0];
    for (let a = 0; a < 3; a++) {
      const t = Math.min(Math.max((at[a] - origin[a]) / step, 0), shape[a] - 1);
      base[a] = Math.min(Math.floor(t), Math.max(shape[a] - 2, 0));
      part[a] = t - base[a];
    }
    const stride = [shape[1] * shape[2], shape[2], 1];
    const start = base[0] * stride[0] + base[1] * stride[1] + base[2];
    let value = 0;
    if (slope) slope[0] = slope[1] = slope[2] = 0;
    for (let corner = 0; corner < 8; corner++) {
      let offset = start, weight = 1;
      const w = [0, 0, 0];
      for (let a = 0; a < 3; a++) {
        const up = corner >> a & 1;
        if (up && shape[a] > 1) offset += stride[a];
        w[a] = up ? part[a] : 1 - part[a];
        weight *= w[a];
      }
      const v = data[offset];
      value += weight * v;
      if (slope) {
        slope[0] += (corner & 1 ? v : -v) * w[1] * w[2] / step;
        slope[1] += (corner & 2 ? v : -v) * w[0] * w[2] / step;
        slope[2] += (corner & 4 ? v : -v) * w[0] * w[1] / step;
      }
    }
    return value;
  };

  // Twice as fine by the Catmull-Rom cubic through the points; the points themselves stay.
  const refine = (volume) => {
    let { data, shape } = volume;
    for (let axis = 0; axis < 3; axis++) {
      const inner = shape.slice(axis + 1).reduce((a, b) => a * b, 1);
      const outer = shape.slice(0, axis).reduce((a, b) => a * b, 1);
      const n = shape[axis], m = 2 * n - 1;
      const out = new Float32Array(outer * m * inner);
      for (let o = 0; o < outer; o++) {
        for (let i = 0; i < inner; i++) {
          const get = (k) => data[(o * n + Math.min(Math.max(k, 0), n - 1)) * inner + i];
          for (let k = 0; k < n; k++) {
            out[(o * m + 2 * k) * inner + i] = get(k);
            if (k < n - 1) {
              const [a, b, c, d] = [get(k - 1), get(k), get(k + 1), get(k + 2)];
              const middle = (9 * (b + c) - a - d) / 16;
              out[(o * m + 2 * k + 1) * inner + i] =
                Math.min(Math.max(middle, Math.min(a, b, c, d)), Math.max(a, b, c, d));
            }
          }
        }
      }
      data = out;
      shape = shape.map((size, a) => a === axis ? m : size);
    }
    return { data, shape, origin: volume.origin, step: volume.step / 2 };
  };

  const EDGES = [[0, 1], [2, 3], [4, 5], [6, 7], [0, 2], [1, 3], [4, 6], [5, 7],
    [0, 4], [1, 5], [2, 6], [3, 7]];

  // Dual isosurface (surface nets): a vertex per mixed cell, at the mean of the crossings on its
  // edges, then moved along the gradient onto the value; a quad around every crossed edge.
  const surface = (volume, value) => {
    const { data, shape: [nx, ny, nz], origin, step } = volume;
    const offset = [0, 1, nz, nz + 1, ny * nz, ny * nz + 1, (ny + 1) * nz, (ny + 1) * nz + 1];
    const number = new Int32Array(nx * ny * nz).fill(-1);
    const vertices = [], normals = [], faces = [], v = new Float64Array(8), g = [0, 0, 0];
    for (let i = 0; i < nx - 1; i++) for (let j = 0; j < ny - 1; j++) {
      for (let k = 0; k < nz - 1; k++) {
        const cell = (i * ny + j) * nz + k;
        let inside = 0;
        for (let c = 0; c < 8; c++) {
          v[c] = data[cell + offset[c]] - value;
          if (v[c] > 0) inside++;
        }
        if (inside === 0 || inside === 8) continue;
        let x = 0, y = 0, z = 0, n = 0;
        for (const [a, b] of EDGES) {
          if (v[a] > 0 === v[b] > 0) continue;
          const t = v[a] / (v[a] - v[b]);
          x += (a >> 2 & 1) + t * ((b >> 2 & 1) - (a >> 2 & 1));
          y += (a >> 1 & 1) + t * ((b >> 1 & 1) - (a >> 1 & 1));
          z += (a & 1) + t * ((b & 1) - (a & 1));
          n++;
        }
        const p = [origin[0] + step * (i + x / n), origin[1] + step * (j + y / n),
          origin[2] + step * (k + z / n)];
        const short = sample(volume, ...p, g) - value;
        const square = g[0] * g[0] + g[1] * g[1] + g[2] * g[2];
        if (square > 0) {
          const move = Math.min(Math.max(-short / Math.sqrt(square), -step / 2), step / 2);
          for (let a = 0; a < 3; a++) p[a] += move * g[a] / Math.sqrt(square);
          sample(volume, ...p, g);
        }
        const length = Math.hypot(...g) || 1;
        number[cell] = vertices.length;
        vertices.push({ x: p[0], y: p[1], z: p[2] });
        normals.push({ x: -g[0] / length, y: -g[1] / length, z: -g[2] / length });
      }
    }
    const stride = [ny * nz, nz, 1], size = [nx, ny, nz];
    for (let i = 0; i < nx; i++) for (let j = 0; j < ny; j++) for (let k = 0; k < nz; k++) {
      const here = (i * ny + j) * nz + k, at = [i, j, k];
      for (let a = 0; a < 3; a++) {
        const b = (a + 1) % 3, c = (a + 2) % 3;
        if (at[a] + 1 >= size[a] || !at[b] || !at[c]) continue;
        if (at[b] + 1 >= size[b] || at[c] + 1 >= size[c]) continue;
        const first = data[here] > value;
        if (first === data[here + stride[a]] > value) continue;
        const q = [number[here], number[here - stride[b]], number[here - stride[b] - stride[c]],
          number[here - stride[c]]];
        if (first) faces.push(q[0], q[1], q[2], q[0], q[2], q[3]);
        else faces.push(q[0], q[2], q[1], q[0], q[3], q[2]);
      }
    }
    return { vertices, normals, faces };
  };

  // Mean of the marked corners (code > 0) with trilinear weights; null if those weigh `least` or
  // less together.
  const sampleMarked = (codes, volume, x, y, z, least = 0) => {
    const { shape, origin, step } = volume;
    const at = [x, y, z].map((value, a) =>
      Math.min(Math.max((value - origin[a]) / step, 0), shape[a] - 1));
    const base = at.map((t, a) => Math.min(Math.floor(t), Math.max(shape[a] - 2, 0)));
    let sum = 0, total = 0;
    for (let corner = 0; corner < 8; corner++) {
      let weight = 1, index = 0;
      for (let a = 0; a < 3; a++) {
        const up = corner >> a & 1;
        weight *= up ? at[a] - base[a] : 1 - at[a] + base[a];
        index = index * shape[a] + Math.min(base[a] + up, shape[a] - 1);
      }
      const code = codes[index];
      if (code > 0) {
        sum += (weight + 1e-6) * code;
        total += weight + 1e-6;
      }
    }
    return total > least ? sum / total : null;
  };

  // Meshes of fewer than `most` vertices that together are this one.
  const chunks = (mesh, most) => {
    const parts = [];
    let part = null, place = null;
    for (let f = 0; f < mesh.faces.length; f += 3) {
      if (part === null || part.vertices.length > most - 3) {
        part = { vertices: [], normals: [], faces: [], from: [] };
        place = new Map();
        parts.push(part);
      }
      for (let c = 0; c < 3; c++) {
        const old = mesh.faces[f + c];
        if (!place.has(old)) {
          place.set(old, part.vertices.length);
          part.vertices.push(mesh.vertices[old]);
          part.normals.push(mesh.normals[old]);
          part.from.push(old);
        }
        part.faces.push(place.get(old));
      }
    }
    return parts;
  };

  return { bytes, decode, sample, sampleMarked, refine, surface, chunks };
})();
