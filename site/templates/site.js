// Extras of pages that are whole without them: sorting a table, and search.
(function () {
'use strict';

// Sorting: a heading with data-sort becomes a button; cells say their number in data-value.
document.querySelectorAll('table[data-sortable]').forEach(function (table) {
var body = table.tBodies[0];
var heads = Array.prototype.slice.call(table.tHead.rows[0].cells);
heads.forEach(function (head, column) {
var kind = head.getAttribute('data-sort');
if (!kind) return;
var button = document.createElement('button');
button.type = 'button';
button.className = 'sort';
while (head.firstChild) button.appendChild(head.firstChild);
head.appendChild(button);
button.addEventListener('click', function () {
var rising = head.getAttribute('aria-sort') === 'descending' || (kind === 'text' && !head.hasAttribute('aria-sort'));
heads.forEach(function (other) { other.removeAttribute('aria-sort'); });
head.setAttribute('aria-sort', rising ? 'ascending' : 'descending');
var rows = Array.prototype.slice.call(body.rows).map(function (row, place) {
var cell = row.cells[column];
var text = kind === 'number' ? cell.getAttribute('data-value') : cell.textContent.trim();
return { row: row, place: place, none: text === null || text === '', value: kind === 'number' ? Number(text) : text };
});
rows.sort(function (a, b) {
if (a.none || b.none) return a.none - b.none || a.place - b.place;
var order = a.value < b.value ? -1 : a.value > b.value ? 1 : 0;
return (rising ? order : -order) || a.place - b.place;
});
rows.forEach(function (entry) { body.appendChild(entry.row); });
});
});
});

// Search: the index is a classic script that calls wmtpSearch, so that it loads from a disk as well as from a server.
var box = document.querySelector('.search');
if (!box) return;
var input = box.querySelector('input');
var list = box.querySelector('.hits');
var status = box.querySelector('[role=status]');
var parts = [];
var started = false;
box.hidden = false;

function load(path) {
var script = document.createElement('script');
script.src = path;
document.head.appendChild(script);
}

window.wmtpSearch = function (part, count, entries) {
parts[part] = entries;
if (part === 0) {
for (var next = 1; next < count; next++) {
load(box.getAttribute('data-index').replace(/\.js$/, '-' + (next + 1) + '.js'));
}
}
show();
};

function show() {
var words = input.value.toLowerCase().normalize('NFC').split(/\s+/).filter(Boolean);
list.textContent = '';
status.textContent = '';
if (!words.length) return;
var hits = [];
parts.forEach(function (entries) {
entries.forEach(function (entry) {
if (words.every(function (word) { return entry[3].indexOf(word) !== -1; })) hits.push(entry);
});
});
var title = function (entry) {
return words.every(function (word) { return entry[1].toLowerCase().indexOf(word) !== -1; }) ? 0 : 1;
};
hits.sort(function (a, b) { return title(a) - title(b); });
status.textContent = String(hits.length);
hits.slice(0, 50).forEach(function (entry) {
var item = document.createElement('li');
var link = document.createElement('a');
link.href = box.getAttribute('data-root') + entry[0];
link.textContent = entry[1];
var text = document.createElement('p');
text.className = 'quiet';
text.textContent = entry[2];
item.appendChild(link);
item.appendChild(text);
list.appendChild(item);
});
}

input.addEventListener('focus', function () {
if (!started) load(box.getAttribute('data-index'));
started = true;
});
input.addEventListener('input', show);
})();
