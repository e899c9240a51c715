// From figures to pixels. A scale is a function with the ticks that its axis shows.

function logScale([low, high], [from, to], ticks) {
  const start = Math.log(low);
  const span = Math.log(high) - start || 1;
  const scale = (value) => from + ((Math.log(value) - start) / span) * (to - from);
  return Object.assign(scale, { ticks: ticks || logTicks(low, high) });
}

function linearScale([low, high], [from, to], ticks) {
  const span = high - low || 1;
  const scale = (value) => from + ((value - low) / span) * (to - from);
  return Object.assign(scale, { ticks: ticks || linearTicks(low, high) });
}

/** Shares below 1: each nine has as much room as the next. */
function nineScale(last, [from, to]) {
  const depth = (share) => -Math.log10(Math.max(1 - share, 1e-9));
  const scale = (share) => from + (depth(Math.min(share, last)) / depth(last)) * (to - from);
  const ticks = [0, 0.5, 0.9, 0.99, 0.999, 0.9999].filter((share) => share <= last);
  return Object.assign(scale, { ticks });
}

/** Both ends of positive figures, with room on each side. */
function logDomain(values, room = 1.12) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  return low === high ? [low / 2, high * 2] : [low / room, high * room];
}

function linearTicks(low, high, wanted = 5) {
  const power = 10 ** Math.floor(Math.log10((high - low) / wanted));
  const roomy = (step) => (high - low) / (step * power) >= wanted - 1;
  const step = power * [10, 5, 2, 1].find(roomy);
  const ticks = [];
  for (let at = Math.ceil(low / step); at * step <= high * (1 + 1e-9); at += 1) {
    ticks.push(Number((at * step).toPrecision(12)));
  }
  return ticks;
}

function logTicks(low, high) {
  for (const steps of [[1, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]]) {
    const ticks = decades(low, high, steps);
    if (steps.length === 5 && ticks.length < 3) return linearTicks(low, high, 4);
    if (ticks.length <= 8) return ticks;
  }
  const powers = decades(low, high, [1]);
  const every = Math.ceil(powers.length / 8);
  return powers.filter((_, at) => at % every === 0);
}

function decades(low, high, steps) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power += 1) {
    for (const step of steps) {
      const value = Number((step * 10 ** power).toPrecision(6));
      if (value >= low && value <= high) ticks.push(value);
    }
  }
  return ticks;
}

/** The ticks whose texts have room, from the end of the axis that the first is at. */
function withRoom(ticks, scale, least) {
  const kept = [];
  for (const tick of ticks) {
    const near = kept.length && Math.abs(scale(tick) - scale(kept[kept.length - 1])) < least;
    if (!near) kept.push(tick);
  }
  return kept;
}
