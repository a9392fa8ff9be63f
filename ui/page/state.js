// What several views show: the guests, the networks, and which of them is looked at.

export const state = {
  network: "",            // the one that is looked at; "" is all
  networks: [],           // names
  guests: new Map(),      // by network/id
  view: "",
};

export const guestKey = (network, id) => `${network ?? ""}/${id}`;

// guestName is what people call a guest.
export function guestName(network, id) {
  const g = state.guests.get(guestKey(network, id));
  return g?.name || id || "";
}

// where is the query for a change to something of a network.
export const where = network => ({ network: network || state.network || "" });

// looked is whether something of a network is to be seen.
export const looked = row => !state.network || !row.network || row.network === state.network;
