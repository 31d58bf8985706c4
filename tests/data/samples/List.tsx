import { useState, type ReactNode } from "react";

type Props = { items: string[]; children?: ReactNode; onPick: (item: string) => void };

export function List({ items, children, onPick }: Props) {
  const [open, setOpen] = useState<boolean>(true);
  const shown = items.filter((item) => item.trim() !== "");
  if (shown.length === 0) {
    return <p className="empty">Nothing here.</p>;
  }
  return (
    <section>
      <button type="button" onClick={() => setOpen(!open)}>
        {open ? "Hide" : "Show"} {shown.length}
      </button>
      {open && (
        <ul>
          {shown.map((item) => (
            <li key={item} onClick={() => onPick(item)}>
              {item}
            </li>
          ))}
        </ul>
      )}
      {children}
    </section>
  );
}
