"""A new farm secret, encrypted with ansible-vault as an old one is."""

import secrets

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

DOCUMENTATION = """
name: secret_like
short_description: a new farm secret, encrypted with ansible-vault as an old one is
description:
  - Returns the text of a file with 32 random bytes in hexadecimal, encrypted with that of Ansible's vault passwords which
    opens the file of the old secret, and under the same vault id. Fails where none does. Each look-up makes another secret.
options:
  _terms:
    description: The file of the old secret on the control host, encrypted with ansible-vault.
    required: true
"""


class LookupModule(LookupBase):
    """See DOCUMENTATION."""

    def run(self, terms, variables=None, **kwargs):
        (file,) = terms
        with open(file, "rb") as old:
            text = old.read()
        try:
            # Where this release of Ansible keeps the passwords that it was given, however it was.
            vault = self._loader._vault
            _, vault_id, secret = vault.decrypt_and_get_vault_id(text, filename=file)
        except (AnsibleError, AttributeError) as error:
            raise AnsibleError(
                f"{file} is encrypted with ansible-vault, and Ansible cannot encrypt a new secret in its place: {error}. Give it the "
                f"vault's password (--ask-vault-pass, --vault-password-file), or make the new secret yourself: "
                f"openssl rand -hex 32 | ansible-vault encrypt --output {file}.new"
            ) from error
        new = secrets.token_hex(32) + "\n"
        return [vault.encrypt(new, secret=secret, vault_id=vault_id).decode()]
