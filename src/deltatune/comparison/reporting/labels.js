"use strict";
// Where the names of points stand, so that they hide neither each other nor a point.
const freePlaces = (function () {
  const SIDES = [[1, 0], [-1, 0], [0, -1], [0, 1], [1, -1], [-1, -1], [1, 1], [-1, 1]];
  const DISTANCES = [9, 18, 30];
  const HEIGHT = 14;

  const around = (x, y, width, height) => [
    x - width / 2, y - height / 2, x + width / 2, y + height / 2,
  ];
  const overlap = (one, other) =>
    one[0] < other[2] && other[0] < one[2] && one[1] < other[3] && other[1] < one[3];
  const isWithin = (box, size) =>
    box[0] >= 0 && box[1] >= 0 && box[2] <= size[0] && box[3] <= size[1];

  // Gives the shift of each label's centre from its point, null where no place is free.
  // points: [x, y] in pixels from the top left; widths: of the labels; size: of the plot;
  // order: who chooses first; line: the points of a line that labels keep clear of.
  return function (points, widths, size, order, line) {
    const taken = points.map(([x, y]) => around(x, y, 10, 10));
    for (let i = 1; i < line.length; i += 1) {
      const [from, to] = [line[i - 1], line[i]];
      const count = Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1]) / 6);
      for (let k = 0; k < count; k += 1) {
        const [x, y] = [0, 1].map((j) => from[j] + ((to[j] - from[j]) * k) / count);
        taken.push(around(x, y, 4, 4));
      }
    }
    const shifts = points.map(() => null);
    for (const i of order) {
      for (const distance of DISTANCES) {
        for (const [across, down] of SIDES) {
          if (shifts[i]) continue;
          const shift = [
            across * (distance + widths[i] / 2),
            down * (distance + (across ? 0 : HEIGHT / 2)),
          ];
          const box = around(points[i][0] + shift[0], points[i][1] + shift[1], widths[i], HEIGHT);
          if (!isWithin(box, size) || taken.some((other) => overlap(box, other))) continue;
          taken.push(box);
          shifts[i] = shift;
        }
      }
    }
    return shifts;
  };
})();
