"use strict";
// Without this script all rows are there; with it the first, those that are searched for, or all at a click.
(function () {
  const FIRST = 30;
  const search = document.getElementById("search");
  if (!search) return;
  const group = document.getElementById("group");
  const shown = document.getElementById("shown");
  const more = document.getElementById("more");
  const rows = Array.from(document.querySelectorAll("#parted tbody tr"), (row) => ({
    row,
    text: row.textContent.toLowerCase(),
  }));
  let all = false;
  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const { row, text } of rows) {
      const fits = (!group.value || row.dataset.group === group.value) && words.every((word) => text.includes(word));
      found += fits;
      row.hidden = !fits || (!all && found > FIRST);
    }
    shown.textContent = found === rows.length ? `${found} rows` : `${found} of ${rows.length} rows`;
    more.hidden = all || found <= FIRST;
    more.textContent = `Show all ${found} rows`;
  }
  search.addEventListener("input", filter);
  group.addEventListener("change", filter);
  more.addEventListener("click", () => {
    all = true;
    filter();
  });
  filter();
})();
