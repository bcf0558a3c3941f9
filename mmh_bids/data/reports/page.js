"use strict";
(function () {
  // Tables of class "sortable": a button in each column's head, so that Tab and Enter sort too. A cell's data-value counts
  // before its words; numbers go by size, words by the reader's alphabet, empty cells last in both directions.
  function cellKey(row, column) {
    var cell = row.cells[column];
    if (!cell) { return ""; }
    return (cell.dataset.value !== undefined ? cell.dataset.value : cell.textContent).trim();
  }
  function isEmpty(text) { return text === "" || text === "n/a" || text === "–"; }
  function compare(one, two) {
    var first = Number(one), second = Number(two);
    if (!isNaN(first) && !isNaN(second)) { return first - second; }
    return one.localeCompare(two, undefined, { numeric: true });
  }
  function sortBy(table, column, sign) {
    var body = table.tBodies[0];
    var rows = Array.prototype.slice.call(body.rows);
    rows.map(function (row, place) { return { row: row, place: place, key: cellKey(row, column) }; })
      .sort(function (one, two) {
        if (isEmpty(one.key) !== isEmpty(two.key)) { return isEmpty(one.key) ? 1 : -1; }
        return sign * compare(one.key, two.key) || one.place - two.place;
      })
      .forEach(function (item) { body.appendChild(item.row); });
  }
  document.querySelectorAll("table.sortable").forEach(function (table) {
    var heads = Array.prototype.slice.call(table.tHead.rows[0].cells);
    heads.forEach(function (head, column) {
      if (!head.textContent.trim() || head.classList.contains("unsorted")) { return; }
      var button = document.createElement("button");
      button.type = "button";
      while (head.firstChild) { button.appendChild(head.firstChild); }
      head.appendChild(button);
      button.addEventListener("click", function () {
        var rising = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach(function (other) { other.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", rising ? "ascending" : "descending");
        sortBy(table, column, rising ? 1 : -1);
      });
    });
  });
  document.querySelectorAll(".copy").forEach(function (button) {
    button.hidden = false;
    button.addEventListener("click", function () {
      var range = document.createRange();
      range.selectNodeContents(document.getElementById(button.dataset.copies));
      var selection = window.getSelection();
      selection.removeAllRanges();
      selection.addRange(range);
      // execCommand also works for pages opened from a file, where the clipboard interface may be refused
      button.textContent = document.execCommand("copy") ? "Copied" : "Selected: press Ctrl+C";
    });
  });
})();
