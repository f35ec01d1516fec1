// JSON text as text. JSON.parse rounds large numbers, reorders names that are numbers, and forgets how a string was
// escaped. Payloads are shown without it.

// Tokens of valid JSON: strings, punctuation, and words and numbers.
const token = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/gs;

// members are the members of an object at the top of text, each as its own text.
export function members(text) {
	const found = {};
	walk(text, '{', (part, name) => {
		found[name] = part;
	});
	return found;
}

// elements are the elements of an array at the top of text.
export function elements(text) {
	const found = [];
	walk(text, '[', (part) => found.push(part));
	return found;
}

function walk(text, open, each) {
	let depth = 0;
	let name = null;
	let start = -1;
	let end = -1;
	token.lastIndex = 0;
	for (const match of text.matchAll(token)) {
		const t = match[0];
		if (depth === 0) {
			if (t !== open) return;
			depth = 1;
			continue;
		}
		const closes = t === '}' || t === ']';
		if (depth === 1 && (t === ',' || closes)) {
			if (start >= 0) each(text.slice(start, end), name);
			start = -1;
			name = null;
			if (closes) return;
			continue;
		}
		if (depth === 1 && t === ':' && open === '{' && name === null) {
			name = JSON.parse(text.slice(start, end));
			start = -1;
			continue;
		}
		if (start < 0) start = match.index;
		end = match.index + t.length;
		if (t === '{' || t === '[') depth++;
		if (closes) depth--;
	}
}

// pretty indents JSON text. Its tokens stay as they are.
export function pretty(text) {
	let out = '';
	let depth = 0;
	let before = '';
	const line = () => `\n${'  '.repeat(depth)}`;
	for (const [t] of text.matchAll(token)) {
		if (t === '}' || t === ']') {
			depth--;
			if (before !== '{' && before !== '[') out += line();
		} else if (before === '{' || before === '[' || before === ',') {
			out += line();
		}
		out += t;
		if (t === '{' || t === '[') depth++;
		if (t === ':') out += ' ';
		before = t;
	}
	return out;
}
